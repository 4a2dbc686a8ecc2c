"""Rows: what a way back drops, changes or moves, and what the rows as they are won't let happen."""

from tests.corpus.case import CUSTOMER, THREE, Case, Expected, Revision, fails, grown, loses, sql, works


def altered(up: str, down: str) -> tuple[Revision, Revision]:
    """An ALTER TABLE customer each way."""
    return grown(sql(f"ALTER TABLE customer {up}"), sql(f"ALTER TABLE customer {down}"))


def item(old: str, new: str, back: str = "") -> tuple[Revision, Revision]:
    """A table of items whose column `v` the upgrade makes of another type, and the downgrade of the old one."""
    using = f" USING {back}" if back else ""
    return (
        Revision("r1", sql(f"CREATE TABLE item (id int PRIMARY KEY, v {old})"), "op.drop_table('item')"),
        Revision(
            "r2",
            sql(f"ALTER TABLE item ALTER v TYPE {new} USING v::text::{new}"),
            sql(f"ALTER TABLE item ALTER v TYPE {old}{using}"),
        ),
    )


def items(*values: str) -> str:
    return "INSERT INTO item (id, v) VALUES " + ", ".join(f"({n}, {v})" for n, v in enumerate(values, 1))


NOTE = sql("CREATE TABLE note (id int PRIMARY KEY, body text)")
LONG = "a_name_of_sixty_three_bytes_which_is_as_long_as_postgresql_goes"
ODD = 'Größe "x" · a.b'

DROPPED = (
    Case(
        name="table_with_rows",
        about="The plainest of all losses.",
        revisions=grown(NOTE, "op.drop_table('note')"),
        rows=("INSERT INTO note SELECT n, 'note ' || n FROM generate_series(1, 500) n",),
        expect=loses({"public.note": 500}, gone_after=("note",)),
    ),
    Case(
        name="empty_table",
        about="Nothing is in it, so nothing is lost and nothing has to be kept.",
        revisions=grown(NOTE, "op.drop_table('note')"),
        rows=(THREE,),
        expect=works(gone_after=("note",)),
    ),
    Case(
        name="column_with_values",
        about="Two of three customers have a phone.",
        revisions=altered("ADD phone text", "DROP phone"),
        rows=(THREE, "UPDATE customer SET phone = '030' WHERE id < 3"),
        expect=loses({"public.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
    Case(
        name="column_of_nulls",
        about="Nobody ever wrote it.",
        revisions=altered("ADD phone text", "DROP phone"),
        rows=(THREE,),
        expect=works(gone_after=("customer.phone",)),
    ),
    Case(
        name="column_with_a_default",
        about="The upgrade back fills it with its default, over which the real values have to go.",
        revisions=altered("ADD points int NOT NULL DEFAULT 0", "DROP points"),
        rows=(THREE, "UPDATE customer SET points = id * 7 WHERE id > 1"),
        expect=loses({"public.customer.points": 3}, gone_after=("customer.points",)),
    ),
    Case(
        name="seeded_table",
        about="The upgrade puts rows in; back up, they stand where a changed row would have to go.",
        revisions=grown(
            sql("CREATE TABLE plan (id int PRIMARY KEY, price int)", "INSERT INTO plan VALUES (1, 10), (2, 20)"),
            "op.drop_table('plan')",
        ),
        rows=("UPDATE plan SET price = 15 WHERE id = 1", "INSERT INTO plan VALUES (3, 30)"),
        # Nothing overwrites a row that is there: the changed price stays in the archive.
        expect=loses({"public.plan": 3}, gone_after=("plan",), restored=False),
    ),
    Case(
        name="composite_primary_key",
        about="Values go back to rows that two columns identify.",
        revisions=(
            Revision(
                "r1",
                sql("CREATE TABLE line (invoice int, position int, PRIMARY KEY (invoice, position))"),
                "op.drop_table('line')",
            ),
            Revision("r2", sql("ALTER TABLE line ADD price int"), sql("ALTER TABLE line DROP price")),
        ),
        rows=("INSERT INTO line VALUES (1, 1, 10), (1, 2, 20), (2, 1, NULL), (2, 2, 40)",),
        expect=loses({"public.line.price": 3}, gone_after=("line.price",)),
    ),
    Case(
        name="table_without_a_primary_key",
        about="Rows that are alike are as many afterwards.",
        revisions=grown(sql("CREATE TABLE visit (page text, at date)"), "op.drop_table('visit')"),
        rows=("INSERT INTO visit VALUES ('/', '2026-01-01'), ('/', '2026-01-01'), ('/', NULL), (NULL, NULL)",),
        expect=loses({"public.visit": 4}, gone_after=("visit",)),
    ),
    Case(
        name="column_without_a_primary_key",
        about="What remains of the row has to tell where a value belongs.",
        revisions=(
            Revision("r1", sql("CREATE TABLE visit (page text, at date)"), "op.drop_table('visit')"),
            Revision("r2", sql("ALTER TABLE visit ADD who text"), sql("ALTER TABLE visit DROP who")),
        ),
        rows=("INSERT INTO visit VALUES ('/', '2026-01-01', 'Ann'), ('/a', NULL, 'Bob'), ('/b', NULL, NULL)",),
        expect=loses({"public.visit.who": 2}, gone_after=("visit.who",)),
    ),
    Case(
        name="column_of_rows_that_are_alike",
        about="No key, and what remains of two rows is the same: nobody can say which value was whose.",
        revisions=(
            Revision("r1", sql("CREATE TABLE visit (page text, at date)"), "op.drop_table('visit')"),
            Revision("r2", sql("ALTER TABLE visit ADD who text"), sql("ALTER TABLE visit DROP who")),
        ),
        rows=("INSERT INTO visit VALUES ('/', NULL, 'Ann'), ('/', NULL, NULL), ('/b', NULL, 'Cy')",),
        expect=loses({"public.visit.who": 2}, gone_after=("visit.who",), restored=False),
    ),
    Case(
        name="the_key_goes_with_the_value",
        about="The primary key itself is what the downgrade drops; the old one takes its place.",
        revisions=grown(
            sql(
                "ALTER TABLE customer ADD uid uuid",
                "UPDATE customer SET uid = gen_random_uuid()",
                "ALTER TABLE customer DROP CONSTRAINT customer_pkey, ADD PRIMARY KEY (uid)",
            ),
            sql("ALTER TABLE customer DROP uid, ADD PRIMARY KEY (id)"),
        ),
        rows=(
            "INSERT INTO customer SELECT n, 'c' || n, NULL, ('00000000-0000-0000-0000-00000000000' || n)::uuid"
            " FROM generate_series(1, 3) n",
        ),
        # Back up, new ids are drawn: the old ones would overwrite them. Column `id` stays NOT NULL, as it was.
        expect=loses({"public.customer.uid": 3}, gone_after=("customer.uid",), restored=False),
    ),
    Case(
        name="column_made_anew",
        about="A column of that name is there afterwards, and it's another one, and empty.",
        revisions=(
            Revision("r1", sql("CREATE TABLE item (id int PRIMARY KEY, v int)")),
            Revision("r2", sql("ALTER TABLE item DROP v, ADD v text"), sql("ALTER TABLE item DROP v, ADD v int")),
        ),
        rows=(items("'one'", "'2'", "NULL"),),
        expect=loses({"public.item.v": 2}, there_after=("item.v",)),
    ),
    Case(
        name="table_made_anew",
        about="A table of that name is there afterwards, and it's another one, and empty.",
        revisions=(
            Revision("r1", NOTE),
            Revision("r2", f"op.drop_table('note')\n{NOTE}", f"op.drop_table('note')\n{NOTE}"),
        ),
        rows=("INSERT INTO note VALUES (1, 'a'), (2, NULL)",),
        expect=loses({"public.note": 2}, there_after=("note",)),
    ),
    Case(
        name="quoted_and_unicode_names",
        about="Capitals, quotes, dots and letters that aren't ASCII.",
        revisions=(
            Revision("r1", sql('CREATE SCHEMA "Läden"', 'CREATE TABLE "Läden"."Order.1" ("Id" int PRIMARY KEY)')),
            Revision(
                "r2",
                f"op.add_column('Order.1', sa.Column({ODD!r}, sa.Text), schema='Läden')",
                f"op.drop_column('Order.1', {ODD!r}, schema='Läden')",
            ),
        ),
        rows=("INSERT INTO \"Läden\".\"Order.1\" VALUES (1, 'XL'), (2, ''), (3, NULL)",),
        expect=loses({f'"Läden"."Order.1".{ODD}': 2}),
    ),
    Case(
        name="sixty_three_bytes",
        about="The longest name there is leaves no room for a suffix.",
        revisions=grown(
            sql(f"CREATE TABLE {LONG} (id int PRIMARY KEY, {LONG} text)"), f"op.drop_table({LONG!r})"
        ),
        rows=(f"INSERT INTO {LONG} VALUES (1, 'a'), (2, NULL)",),
        expect=loses({f"public.{LONG}": 2}, gone_after=(LONG,)),
    ),
    Case(
        name="large_values",
        about="Two megabytes in a row.",
        revisions=altered("ADD photo bytea", "DROP photo"),
        rows=(THREE, "UPDATE customer SET photo = convert_to(repeat('0123456789abcdef', 131072), 'UTF8') WHERE id < 3"),
        expect=loses({"public.customer.photo": 2}, gone_after=("customer.photo",)),
    ),
    Case(
        name="values_of_many_types",
        about="Infinities, NaN, nested arrays, JSON with its white space, ranges, a row type, and an empty text beside NULL.",
        revisions=grown(
            sql(
                "CREATE TABLE oddity (id int PRIMARY KEY, f float8, n numeric, at timestamptz, a int[], j json, b jsonb,"
                " r tstzrange, i interval, c customer, t text, x bytea, m bit(4), u uuid, p inet, ch char(5))"
            ),
            "op.drop_table('oddity')",
        ),
        rows=(
            "INSERT INTO oddity VALUES (1, 'NaN', 'NaN', 'infinity', '{{1,NULL},{3,4}}', '{\"b\":  1, \"a\": 2}', '{\"b\": 1}',"
            " '[2026-01-01,)', '1 mon 2 days', (1, 'A \"q\"', NULL), '', '\\x00ff', B'1010', gen_random_uuid(), '10.0.0.0/8', 'ab'),"
            " (2, '-0', '1.1000', '-infinity', '{}', 'null', 'null', 'empty', '-1 sec', NULL, E'\\t\\n\\\\N', '', B'0000', NULL, '::1', '')",
            "INSERT INTO oddity (id) VALUES (3)",
        ),
        expect=loses({"public.oddity": 3}, gone_after=("oddity",)),
    ),
    Case(
        name="tables_that_point_to_each_other",
        about="A cycle of foreign keys: no order of tables satisfies it row by row.",
        revisions=grown(
            sql(
                "CREATE TABLE team (id int PRIMARY KEY, lead int)",
                "CREATE TABLE person (id int PRIMARY KEY, team int REFERENCES team, boss int REFERENCES person)",
                "ALTER TABLE team ADD CONSTRAINT team_lead_fkey FOREIGN KEY (lead) REFERENCES person",
            ),
            "op.drop_constraint('team_lead_fkey', 'team')\nop.drop_table('person')\nop.drop_table('team')",
        ),
        rows=(
            "INSERT INTO team VALUES (1, NULL), (2, NULL)",
            "INSERT INTO person VALUES (2, 1, NULL), (1, 2, 2)",
            "UPDATE team SET lead = id",
        ),
        expect=loses({"public.team": 2, "public.person": 2}, gone_after=("team", "person")),
    ),
    Case(
        name="row_written_meanwhile",
        about="Another session commits a row when the archive is being made: it's kept too, or the run stops.",
        revisions=grown(NOTE, "op.drop_table('note')"),
        rows=("INSERT INTO note SELECT n, 'note ' || n FROM generate_series(1, 500) n",),
        concurrent="INSERT INTO note VALUES (501, 'late')",
        expect=loses({"public.note": 501}, gone_after=("note",)),
    ),
    Case(
        name="value_written_meanwhile",
        about="The same for a value of a column that goes.",
        revisions=altered("ADD phone text", "DROP phone"),
        rows=(THREE, "UPDATE customer SET phone = '030' WHERE id = 1"),
        concurrent="UPDATE customer SET phone = '040' WHERE id = 2",
        expect=loses({"public.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
)  # fmt: skip

RULES = (
    Case(
        name="not_null_over_nulls",
        about="A customer came without an email since.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, email text NOT NULL)")),
            Revision("r2", "op.alter_column('customer', 'email', nullable=True)", "op.alter_column('customer', 'email', nullable=False)"),
        ),
        rows=("INSERT INTO customer VALUES (1, 'a'), (2, NULL)",),
        expect=fails("null"),
    ),
    Case(
        name="not_null_without_nulls",
        about="The same, and everybody has one.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, email text NOT NULL)")),
            Revision("r2", "op.alter_column('customer', 'email', nullable=True)", "op.alter_column('customer', 'email', nullable=False)"),
        ),
        rows=("INSERT INTO customer VALUES (1, 'a'), (2, 'b')",),
        expect=works(),
    ),
    Case(
        name="not_null_over_nulls_that_it_fills",
        about="The downgrade fills them first: it works, and says which rows it wrote over.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, email text NOT NULL)")),
            Revision(
                "r2",
                sql("ALTER TABLE customer ALTER email DROP NOT NULL"),
                sql("UPDATE customer SET email = '' WHERE email IS NULL", "ALTER TABLE customer ALTER email SET NOT NULL"),
            ),
        ),
        rows=("INSERT INTO customer VALUES (1, 'a'), (2, NULL), (3, NULL)",),
        expect=loses({"public.customer": 2}),
    ),
    Case(
        name="filled_by_the_step_before",
        about="The NULLs that would fail r2 are filled by r3's downgrade, which comes first.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, email text NOT NULL)")),
            Revision(
                "r2",
                sql("ALTER TABLE customer ALTER email DROP NOT NULL"),
                sql("ALTER TABLE customer ALTER email SET NOT NULL"),
            ),
            Revision("r3", sql("COMMENT ON TABLE customer IS NULL"), sql("UPDATE customer SET email = '-' WHERE email IS NULL")),
        ),
        rows=("INSERT INTO customer VALUES (1, 'a'), (2, NULL)",),
        to="r1",
        expect=loses(
            {"public.customer": 1}, verdict={"r3": "reversible_with_loss", "r2": "reversible"}
        ),
    ),
    Case(
        name="column_back_without_a_default",
        about="The dropped column comes back NOT NULL and without a default, over rows.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, legacy text NOT NULL)")),
            Revision("r2", "op.drop_column('customer', 'legacy')", "op.add_column('customer', sa.Column('legacy', sa.Text, nullable=False))"),
        ),
        rows=("INSERT INTO customer VALUES (1), (2), (3)",),
        expect=fails("legacy"),
    ),
    Case(
        name="column_back_without_a_default_over_no_rows",
        about="The same over an empty table.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, legacy text NOT NULL)")),
            Revision("r2", "op.drop_column('customer', 'legacy')", "op.add_column('customer', sa.Column('legacy', sa.Text, nullable=False))"),
        ),
        expect=works(there_after=("customer.legacy",)),
    ),
    Case(
        name="column_back_with_a_default",
        about="With a server default it comes back, and the default stays as drift.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, legacy text NOT NULL)")),
            Revision(
                "r2",
                "op.drop_column('customer', 'legacy')",
                "op.add_column('customer', sa.Column('legacy', sa.Text, nullable=False, server_default='?'))",
            ),
        ),
        rows=("INSERT INTO customer VALUES (1), (2), (3)",),
        expect=works(there_after=("customer.legacy",), drift="~ column public.customer.legacy"),
    ),
    Case(
        name="unique_over_duplicates",
        about="Two customers share a name since the rule went.",
        revisions=altered("ADD nick text", "DROP nick, ADD CONSTRAINT customer_name_unique UNIQUE (name)"),
        rows=("INSERT INTO customer VALUES (1, 'Ann'), (2, 'Ann')",),
        expect=fails("unique"),
    ),
    Case(
        name="unique_over_duplicates_that_it_deletes",
        about="The downgrade keeps the oldest of each, and then it works.",
        revisions=grown(
            sql("ALTER TABLE customer ADD nick text"),
            sql(
                "DELETE FROM customer c USING customer o WHERE o.name = c.name AND o.id < c.id",
                "ALTER TABLE customer DROP nick, ADD CONSTRAINT customer_name_unique UNIQUE (name)",
            ),
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann'), (2, 'Ann'), (3, 'Bob'), (4, 'Ann')",),
        # The rule wasn't there before the upgrade, and it stays after the one back.
        expect=loses(
            {"public.customer": 2}, drift="+ constraint public.customer.customer_name_unique", restored=False
        ),
    ),
    Case(
        name="duplicates_that_it_makes",
        about="No two names are alike today; in small letters, as the downgrade writes them, they are.",
        revisions=grown(
            sql("SELECT 1"),
            sql("UPDATE customer SET name = lower(name)", "CREATE UNIQUE INDEX name_unique ON customer (name)"),
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann'), (2, 'ANN')",),
        expect=fails("unique"),
    ),
    Case(
        name="not_null_on_a_renamed_column",
        about="The column that will fail has another name today than in the script that fails.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, email text NOT NULL)")),
            Revision(
                "r2",
                sql("ALTER TABLE customer ALTER email DROP NOT NULL"),
                sql("ALTER TABLE customer ALTER email SET NOT NULL"),
            ),
            Revision(
                "r3",
                sql("ALTER TABLE customer RENAME email TO mail"),
                sql("ALTER TABLE customer RENAME mail TO email"),
            ),
        ),
        rows=("INSERT INTO customer VALUES (1, 'a'), (2, NULL)",),
        to="r1",
        expect=Expected(
            verdict={"r3": "reversible", "r2": "will_fail"},
            why={"r2": "null"},
            outcome="from",
            heads_after=("r3",),
            there_after=("customer.mail",),
        ),
    ),
    Case(
        name="unique_index_over_an_expression",
        about="Names that differ in capitals alone are one name to this index.",
        revisions=grown(sql("SELECT 1"), sql("CREATE UNIQUE INDEX customer_lower_unique ON customer (lower(name))")),
        rows=("INSERT INTO customer VALUES (1, 'Ann'), (2, 'ANN'), (3, NULL), (4, NULL)",),
        expect=fails("unique"),
    ),
    Case(
        name="partial_unique_index",
        about="Duplicates are there, and the index doesn't look at them.",
        revisions=grown(
            sql("SELECT 1"), sql("CREATE UNIQUE INDEX one_each ON customer (name) WHERE email IS NOT NULL")
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Ann', NULL), (3, 'Ann', NULL)",),
        expect=works(drift="+ index public.one_each"),
    ),
    Case(
        name="unique_with_nulls_not_distinct",
        about="Two NULLs are one too many here.",
        revisions=altered("ADD nick text", "DROP nick, ADD CONSTRAINT email_unique UNIQUE NULLS NOT DISTINCT (email)"),
        rows=("INSERT INTO customer VALUES (1, 'a', NULL), (2, 'b', NULL)",),
        expect=fails("unique"),
    ),
    Case(
        name="foreign_key_over_orphans",
        about="An invoice of nobody was written since the rule went.",
        revisions=(
            CUSTOMER,
            Revision(
                "r2",
                sql("CREATE TABLE invoice (id int PRIMARY KEY, customer_id int REFERENCES customer)"),
                "op.drop_table('invoice')",
            ),
            Revision(
                "r3",
                "op.drop_constraint('invoice_customer_id_fkey', 'invoice')",
                "op.create_foreign_key('invoice_customer_id_fkey', 'invoice', 'customer', ['customer_id'], ['id'])",
            ),
        ),
        rows=(THREE, "INSERT INTO invoice VALUES (1, 1), (2, 9), (3, NULL)"),
        expect=fails("customer_id", "r3"),
    ),
    Case(
        name="foreign_key_not_validated",
        about="NOT VALID lets the orphans be, and is no longer the rule that stood there.",
        revisions=(
            CUSTOMER,
            Revision("r2", sql("CREATE TABLE invoice (id int PRIMARY KEY, customer_id int REFERENCES customer)")),
            Revision(
                "r3",
                sql("ALTER TABLE invoice DROP CONSTRAINT invoice_customer_id_fkey"),
                sql(
                    "ALTER TABLE invoice ADD CONSTRAINT invoice_customer_id_fkey FOREIGN KEY (customer_id)"
                    " REFERENCES customer NOT VALID"
                ),
            ),
        ),
        rows=(THREE, "INSERT INTO invoice VALUES (1, 1), (2, 9)"),
        expect=works(
            verdict={"r3": "reversible"},
            heads_after=("r2",),
            drift="~ constraint public.invoice.invoice_customer_id_fkey",
        ),
    ),
    Case(
        name="check_over_violating_rows",
        about="A name was written that the old rule forbids.",
        revisions=altered("ADD nick text", "DROP nick, ADD CONSTRAINT name_is_short CHECK (length(name) < 10)"),
        rows=("INSERT INTO customer VALUES (1, 'Ann'), (2, 'Wolfeschlegelstein')",),
        expect=fails("name_is_short"),
    ),
    Case(
        name="exclusion_over_overlapping_rows",
        about="Two bookings overlap since the rule went.",
        revisions=(
            Revision("r1", sql("CREATE TABLE booking (id int PRIMARY KEY, during int4range, CONSTRAINT no_overlap EXCLUDE USING gist (during WITH &&))")),
            Revision(
                "r2",
                sql("ALTER TABLE booking DROP CONSTRAINT no_overlap"),
                sql("ALTER TABLE booking ADD CONSTRAINT no_overlap EXCLUDE USING gist (during WITH &&)"),
            ),
        ),
        rows=("INSERT INTO booking VALUES (1, '[1,5)'), (2, '[3,9)')",),
        expect=fails("no_overlap"),
    ),
    Case(
        name="insert_of_a_row_that_is_there",
        about="The downgrade puts a row back that somebody entered again by hand.",
        revisions=grown(sql("DELETE FROM customer WHERE id = 0"), sql("INSERT INTO customer VALUES (0, 'nobody', NULL)")),
        rows=("INSERT INTO customer VALUES (0, 'Zoe', NULL)",),
        expect=fails("unique"),
    ),
)  # fmt: skip

TYPES = (
    Case(
        name="varchar_too_narrow",
        about="A value has grown beyond the old length.",
        revisions=item("varchar(5)", "text"),
        rows=(items("'short'", "'longer'", "NULL"),),
        expect=fails("type"),
    ),
    Case(
        name="varchar_cut_off",
        about="USING left(): it works, and cuts one of three.",
        revisions=item("varchar(5)", "text", "left(v, 5)"),
        rows=(items("'short'", "'longer'", "NULL"),),
        expect=loses({"public.item.v": 1}),
    ),
    Case(
        name="varchar_wide_enough",
        about="Every value fits.",
        revisions=item("varchar(5)", "text"),
        rows=(items("'short'", "''", "NULL"),),
        expect=works(),
    ),
    Case(
        name="numeric_rounded",
        about="PostgreSQL rounds without a word; 1.2300 becomes 1.23, which is the same number.",
        revisions=item("numeric(8,2)", "numeric(8,4)"),
        rows=(items("1.2345", "1.2300", "9.9999", "NULL"),),
        expect=loses({"public.item.v": 2}),
    ),
    Case(
        name="numeric_overflow",
        about="A number too large for the old precision.",
        revisions=item("numeric(4,2)", "numeric(8,2)"),
        rows=(items("12.34", "1234.50"),),
        expect=fails("numeric"),
    ),
    Case(
        name="bigint_to_integer_out_of_range",
        about="An id beyond 2,147,483,647.",
        revisions=item("int", "bigint"),
        rows=(items("1", "3000000000"),),
        expect=fails("integer"),
    ),
    Case(
        name="bigint_to_integer_in_range",
        about="Every id is small enough.",
        revisions=item("int", "bigint"),
        rows=(items("1", "2000000000"),),
        expect=works(),
    ),
    Case(
        name="text_to_integer_that_fails",
        about="Not every text is a number.",
        revisions=item("int", "text", "v::int"),
        rows=(items("'1'", "'one'", "''"),),
        expect=fails("integer"),
    ),
    Case(
        name="text_to_integer_with_leading_zeros",
        about="Every text is a number, and 007 comes back as 7.",
        revisions=item("int", "text", "v::int"),
        rows=(items("'7'", "'007'", "NULL"),),
        expect=loses({"public.item.v": 1}),
    ),
    Case(
        name="timestamp_to_date",
        about="The time of day goes.",
        revisions=item("date", "timestamp"),
        rows=(items("'2026-01-01 10:00'", "'2026-01-02 00:00'", "NULL"),),
        # Midnight comes back as midnight.
        expect=loses({"public.item.v": 1}),
    ),
    Case(
        name="type_without_a_cast",
        about="No USING, and PostgreSQL knows no way by itself.",
        revisions=item("int", "text"),
        rows=(items("'1'"),),
        expect=fails("cast"),
    ),
    Case(
        name="values_mapped_by_using",
        about="USING CASE: yes and no back to a boolean, and `maybe` to NULL.",
        revisions=item("boolean", "text", "CASE v WHEN 'true' THEN true WHEN 'false' THEN false END"),
        rows=(items("'true'", "'false'", "'maybe'", "NULL"),),
        expect=loses({"public.item.v": 1}),
    ),
)

WRITTEN = (
    Case(
        name="update",
        about="Values are overwritten; the rows that had the new value already aren't changed by it.",
        revisions=grown(sql("SELECT 1"), sql("UPDATE customer SET name = upper(name)")),
        rows=("INSERT INTO customer VALUES (1, 'Ann'), (2, 'BOB'), (3, NULL)",),
        expect=loses({"public.customer": 1}),
    ),
    Case(
        name="data_migration_there_and_back",
        about="Rows alone, no schema: those that the new release wrote can't be told from the converted ones.",
        revisions=grown(
            sql("UPDATE customer SET email = 'mailto:' || email"),
            sql("UPDATE customer SET email = substr(email, 8) WHERE email LIKE 'mailto%'"),
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann', 'mailto:a@x'), (2, 'Bob', 'b@x'), (3, 'Cy', NULL)",),
        # Back up, b@x has become mailto:b@x, which nobody's archive knows of.
        expect=loses({"public.customer": 1}, restored=False),
    ),
    Case(
        name="delete",
        about="Rows that the old release can't read are deleted.",
        revisions=grown(sql("SELECT 1"), sql("DELETE FROM customer WHERE email IS NULL")),
        rows=(THREE,),
        expect=loses({"public.customer": 1}),
    ),
    Case(
        name="delete_of_nothing",
        about="The same, and there are none.",
        revisions=grown(sql("SELECT 1"), sql("DELETE FROM customer WHERE name = 'Zoe'")),
        rows=(THREE,),
        expect=works(),
    ),
    Case(
        name="truncate",
        about="A table is emptied.",
        revisions=grown(sql("CREATE TABLE cache (id int PRIMARY KEY)"), sql("TRUNCATE customer", "DROP TABLE cache")),
        rows=(THREE,),
        expect=loses({"public.customer": 3}, gone_after=("cache",)),
    ),
    Case(
        name="truncate_cascade",
        about="And another that points to it.",
        revisions=(
            Revision(
                "r1",
                sql(
                    "CREATE TABLE customer (id int PRIMARY KEY, name text)",
                    "CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer)",
                ),
            ),
            Revision("r2", sql("SELECT 1"), sql("TRUNCATE customer CASCADE")),
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann')", "INSERT INTO invoice VALUES (1, 1), (2, NULL)"),
        expect=loses({"public.customer": 1, "public.invoice": 2}),
    ),
    Case(
        name="cascaded_deletes",
        about="One row is deleted by name, and two others by ON DELETE CASCADE and one changed by SET NULL.",
        revisions=(
            Revision(
                "r1",
                sql(
                    "CREATE TABLE customer (id int PRIMARY KEY, name text)",
                    "CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer ON DELETE CASCADE)",
                    "CREATE TABLE visit (id int PRIMARY KEY, customer int REFERENCES customer ON DELETE SET NULL)",
                ),
            ),
            Revision("r2", sql("SELECT 1"), sql("DELETE FROM customer WHERE name = 'guest'")),
        ),
        rows=(
            "INSERT INTO customer VALUES (1, 'guest'), (2, 'Ann')",
            "INSERT INTO invoice VALUES (1, 1), (2, 1), (3, 2)",
            "INSERT INTO visit VALUES (1, 1), (2, 2)",
        ),
        expect=loses({"public.customer": 1, "public.invoice": 2, "public.visit": 1}),
    ),
    Case(
        name="update_of_the_key",
        about="The key itself is changed, so that what was 1 is 11 afterwards.",
        revisions=grown(sql("UPDATE customer SET id = id - 10"), sql("UPDATE customer SET id = id + 10")),
        rows=(THREE,),
        # It undoes what the upgrade does: back up, every row is as before.
        expect=loses({"public.customer": 3}),
    ),
)  # fmt: skip

MOVED = (
    Case(
        name="table_renamed",
        about="Another name, the same rows.",
        revisions=grown("op.rename_table('customer', 'client')", "op.rename_table('client', 'customer')"),
        rows=(THREE.replace("customer", "client"),),
        expect=works(moved={"public.client": "public.customer"}, gone_after=("client",), there_after=("customer",)),
    ),
    Case(
        name="column_renamed",
        about="Another name, the same values.",
        revisions=grown(
            "op.alter_column('customer', 'email', new_column_name='mail')",
            "op.alter_column('customer', 'mail', new_column_name='email')",
        ),
        rows=(THREE,),
        expect=works(
            moved={"public.customer.mail": "email"}, gone_after=("customer.mail",), there_after=("customer.email",)
        ),
    ),
    Case(
        name="renamed_and_then_dropped",
        about="What is lost is said by the names that people know today.",
        revisions=(
            CUSTOMER,
            Revision("r2", sql("ALTER TABLE customer ADD phone text"), sql("ALTER TABLE customer DROP phone")),
            Revision(
                "r3",
                sql("ALTER TABLE customer RENAME TO client", "ALTER TABLE client RENAME phone TO tel"),
                sql("ALTER TABLE client RENAME tel TO phone", "ALTER TABLE client RENAME TO customer"),
            ),
        ),
        rows=("INSERT INTO client VALUES (1, 'Ann', NULL, '030'), (2, 'Bob', NULL, NULL)",),
        to="r1",
        expect=loses(
            {"public.client.tel": 1},
            verdict={"r3": "reversible", "r2": "reversible_with_loss"},
            moved={"public.client": "public.customer"},
            gone_after=("client", "client.tel"),
        ),
    ),
    Case(
        name="column_replaced",
        about="Another column has the dropped one's older name by now; each gets its own values back.",
        revisions=(
            CUSTOMER,
            Revision("r2", sql("ALTER TABLE customer ADD phone text"), sql("ALTER TABLE customer DROP phone")),
            Revision(
                "r3",
                sql("ALTER TABLE customer RENAME phone TO old_phone", "ALTER TABLE customer ADD phone text"),
                sql("ALTER TABLE customer DROP phone", "ALTER TABLE customer RENAME old_phone TO phone"),
            ),
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann', NULL, '030', '+4930'), (2, 'Bob', NULL, NULL, '+4940')",),
        to="r1",
        expect=loses(
            {"public.customer.phone": 2, "public.customer.old_phone": 1},
            verdict={"r3": "reversible_with_loss", "r2": "reversible_with_loss"},
            gone_after=("customer.phone", "customer.old_phone"),
        ),
    ),
    Case(
        name="table_replaced",
        about="Another table has the dropped one's older name by now; each gets its own rows back.",
        revisions=(
            CUSTOMER,
            Revision("r2", sql("CREATE TABLE note (id int PRIMARY KEY, body text)"), sql("DROP TABLE note")),
            Revision(
                "r3",
                sql("ALTER TABLE note RENAME TO old_note", "CREATE TABLE note (id int PRIMARY KEY, body text)"),
                sql("DROP TABLE note", "ALTER TABLE old_note RENAME TO note"),
            ),
        ),
        rows=("INSERT INTO note VALUES (1, 'new'), (2, 'newer')", "INSERT INTO old_note VALUES (1, 'old'), (3, NULL)"),
        to="r1",
        expect=loses(
            {"public.note": 2, "public.old_note": 2},
            verdict={"r3": "reversible_with_loss", "r2": "reversible_with_loss"},
            gone_after=("note", "old_note"),
        ),
    ),
    Case(
        name="table_renamed_and_then_dropped",
        about="Under the name of today it is gone in the end, as planned, though another name was dropped.",
        revisions=(
            CUSTOMER,
            Revision("r2", sql("CREATE TABLE note (id int, body text)"), sql("DROP TABLE note")),
            Revision("r3", sql("ALTER TABLE note RENAME TO memo"), sql("ALTER TABLE memo RENAME TO note")),
        ),
        rows=("INSERT INTO memo VALUES (1, 'a'), (1, 'a'), (2, NULL)",),
        to="r1",
        expect=loses(
            {"public.memo": 3},
            verdict={"r3": "reversible", "r2": "reversible_with_loss"},
            gone_after=("memo",),
        ),
    ),
    Case(
        name="table_merged_back",
        about="The upgrade split addresses off; the downgrade moves them back, and drops the table that they lay in.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, street text)")),
            Revision(
                "r2",
                sql(
                    "CREATE TABLE address (customer int PRIMARY KEY REFERENCES customer, street text)",
                    "INSERT INTO address SELECT id, street FROM customer WHERE street IS NOT NULL",
                    "ALTER TABLE customer DROP street",
                ),
                sql(
                    "ALTER TABLE customer ADD street text",
                    "UPDATE customer c SET street = a.street FROM address a WHERE a.customer = c.id",
                    "DROP TABLE address",
                ),
            ),
        ),
        rows=("INSERT INTO customer VALUES (1), (2), (3)", "INSERT INTO address VALUES (1, 'High St'), (2, 'Low St')"),
        expect=loses({"public.address": 2}, gone_after=("address",), there_after=("customer.street",)),
    ),
    Case(
        name="table_merged_back_with_loss",
        about="Customers have several addresses since: one of each remains.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, street text)")),
            Revision(
                "r2",
                sql(
                    "CREATE TABLE address (id int PRIMARY KEY, customer int, street text)",
                    "INSERT INTO address SELECT id, id, street FROM customer WHERE street IS NOT NULL",
                    "ALTER TABLE customer DROP street",
                ),
                sql(
                    "ALTER TABLE customer ADD street text",
                    "UPDATE customer c SET street = (SELECT min(street) FROM address a WHERE a.customer = c.id)",
                    "DROP TABLE address",
                ),
            ),
        ),
        rows=(
            "INSERT INTO customer VALUES (1), (2)",
            "INSERT INTO address VALUES (7, 1, 'High St'), (8, 1, 'Low St'), (9, 2, 'Mid St')",
        ),
        # Back up, the two that moved have other ids than they had.
        expect=loses({"public.address": 3}, gone_after=("address",), restored=False),
    ),
    Case(
        name="table_split_again",
        about="The upgrade merged two tables, and the downgrade takes them apart.",
        revisions=(
            Revision("r1", sql("CREATE TABLE person (id int PRIMARY KEY, name text)", "CREATE TABLE firm (id int PRIMARY KEY, name text)")),
            Revision(
                "r2",
                sql(
                    "CREATE TABLE party (kind text, id int, name text, PRIMARY KEY (kind, id))",
                    "INSERT INTO party SELECT 'person', id, name FROM person UNION ALL SELECT 'firm', id, name FROM firm",
                    "DROP TABLE person",
                    "DROP TABLE firm",
                ),
                sql(
                    "CREATE TABLE person (id int PRIMARY KEY, name text)",
                    "CREATE TABLE firm (id int PRIMARY KEY, name text)",
                    "INSERT INTO person SELECT id, name FROM party WHERE kind = 'person'",
                    "INSERT INTO firm SELECT id, name FROM party WHERE kind = 'firm'",
                    "DROP TABLE party",
                ),
            ),
        ),
        rows=("INSERT INTO party VALUES ('person', 1, 'Ann'), ('firm', 1, 'Ann Ltd'), ('club', 1, 'Anns')",),
        expect=loses({"public.party": 3}, gone_after=("party",), there_after=("person", "firm")),
    ),
    Case(
        name="column_copied_and_dropped",
        about="The values move into another column before theirs goes.",
        revisions=grown(
            sql(
                "ALTER TABLE customer ADD mail text",
                "UPDATE customer SET mail = email",
                "ALTER TABLE customer DROP email",
            ),
            sql(
                "ALTER TABLE customer ADD email text",
                "UPDATE customer SET email = mail",
                "ALTER TABLE customer DROP mail",
            ),
        ),
        rows=("INSERT INTO customer VALUES (1, 'Ann', 'a@x'), (2, 'Bob', NULL)",),
        expect=loses({"public.customer.mail": 1}, gone_after=("customer.mail",), there_after=("customer.email",)),
    ),
)  # fmt: skip

CASES = (*DROPPED, *RULES, *TYPES, *WRITTEN, *MOVED)
