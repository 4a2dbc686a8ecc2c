"""PostgreSQL's objects: what hangs on what, what is left behind, and what comes back different."""

from tests.corpus.case import CUSTOMER, THREE, Case, Expected, Revision, fails, grown, loses, sql, works


def there_and_back(up: tuple[str, ...], down: tuple[str, ...]) -> tuple[Revision, Revision]:
    """Customers, and SQL upon them each way."""
    return grown(sql(*up), sql(*down))


MOOD = sql("CREATE TYPE mood AS ENUM ('sad', 'happy')", "CREATE TABLE face (id int PRIMARY KEY, mood mood)")
MEASURE = Revision(
    "r1",
    sql(
        "CREATE TABLE measure (at date, value int) PARTITION BY RANGE (at)",
        "CREATE TABLE measure_2025 PARTITION OF measure FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
    ),
)
MEASURE_2026 = (
    "CREATE TABLE measure_2026 PARTITION OF measure FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
)
MEASURED = "INSERT INTO measure VALUES ('2025-03-01', 1), ('2026-03-01', 2), ('2026-04-01', 3)"
RENAMED_LABELS = (
    "ALTER TABLE face ALTER mood TYPE text",
    "DROP TYPE mood",
    "CREATE TYPE mood AS ENUM ('sad', 'happy')",
    "ALTER TABLE face ALTER mood TYPE mood USING mood::mood",
)

TYPES = (
    Case(
        name="enum_label_in_use",
        about="The label that the old type lacks is in a row.",
        revisions=(Revision("r1", MOOD), Revision("r2", sql("ALTER TYPE mood ADD VALUE 'ok'"), sql(*RENAMED_LABELS))),
        rows=("INSERT INTO face VALUES (1, 'sad'), (2, 'ok')",),
        expect=fails("mood"),
    ),
    Case(
        name="enum_label_not_in_use",
        about="Nobody used the new label.",
        revisions=(Revision("r1", MOOD), Revision("r2", sql("ALTER TYPE mood ADD VALUE 'ok'"), sql(*RENAMED_LABELS))),
        rows=("INSERT INTO face VALUES (1, 'sad'), (2, 'happy')",),
        expect=works(),
    ),
    Case(
        name="enum_label_mapped",
        about="The label goes, and its rows get another one.",
        revisions=(
            Revision("r1", MOOD),
            Revision(
                "r2",
                sql("ALTER TYPE mood ADD VALUE 'ok'"),
                sql(
                    *RENAMED_LABELS[:3],
                    "ALTER TABLE face ALTER mood TYPE mood USING (CASE mood WHEN 'ok' THEN 'happy' ELSE mood END)::mood",
                ),
            ),
        ),
        rows=("INSERT INTO face VALUES (1, 'sad'), (2, 'ok'), (3, 'ok')",),
        # The type has the name that it had, and is another one.
        expect=loses({"public.face.mood": 2}),
    ),
    Case(
        name="enum_label_stays",
        about="PostgreSQL can't remove a label, so the downgrade does nothing about it, and says so by a statement.",
        revisions=(
            Revision("r1", MOOD),
            Revision("r2", sql("ALTER TYPE mood ADD VALUE IF NOT EXISTS 'ok'"), sql("COMMENT ON TYPE mood IS 'ok stays'")),
        ),
        rows=("INSERT INTO face VALUES (1, 'sad'), (2, 'ok')",),
        expect=works(drift="~ type public.mood"),
    ),
    Case(
        name="enum_type_left_behind",
        about="op.create_table makes the type, op.drop_table leaves it: the next upgrade fails.",
        revisions=grown(
            "op.create_table('face', sa.Column('id', sa.Integer, primary_key=True), sa.Column('mood', sa.Enum('a', 'b', name='mood')))",
            "op.drop_table('face')",
        ),
        rows=("INSERT INTO face VALUES (1, 'a')",),
        expect=loses(
            {"public.face": 1},
            gone_after=("face",),
            drift="+ type public.mood",
            upgrade_fails="already exists",
            restored=False,
        ),
    ),
    Case(
        name="enum_type_dropped_with_its_column",
        about="The values' own type is gone too: they can't be kept as what they are.",
        revisions=(
            CUSTOMER,
            Revision(
                "r2",
                sql("CREATE TYPE mood AS ENUM ('sad', 'happy')", "ALTER TABLE customer ADD mood mood"),
                sql("ALTER TABLE customer DROP mood", "DROP TYPE mood"),
            ),
        ),
        rows=(THREE, "UPDATE customer SET mood = 'happy' WHERE id = 1"),
        expect=loses({"public.customer.mood": 1}, gone_after=("customer.mood",)),
    ),
    Case(
        name="text_to_enum_of_ones_own",
        about="A free text goes back to a type that knows two words.",
        revisions=(
            Revision("r1", MOOD),
            Revision(
                "r2",
                sql("ALTER TABLE face ALTER mood TYPE text"),
                sql("ALTER TABLE face ALTER mood TYPE mood USING mood::mood"),
            ),
        ),
        rows=("INSERT INTO face VALUES (1, 'sad'), (2, 'so-so')",),
        expect=fails("mood"),
    ),
    Case(
        name="domain_that_forbids_values",
        about="The column goes back to a domain whose check a value breaks.",
        revisions=(
            Revision("r1", sql("CREATE DOMAIN positive AS int CHECK (VALUE > 0)", "CREATE TABLE item (id int PRIMARY KEY, v positive)")),
            Revision("r2", sql("ALTER TABLE item ALTER v TYPE int"), sql("ALTER TABLE item ALTER v TYPE positive")),
        ),
        rows=("INSERT INTO item VALUES (1, 5), (2, -5)",),
        expect=fails("positive"),
    ),
    Case(
        name="domain_dropped_with_its_column",
        about="A column of a domain, and the domain with it.",
        revisions=there_and_back(
            ("CREATE DOMAIN zip AS text CHECK (VALUE ~ '^[0-9]{5}$')", "ALTER TABLE customer ADD zip zip"),
            ("ALTER TABLE customer DROP zip", "DROP DOMAIN zip"),
        ),
        rows=(THREE, "UPDATE customer SET zip = '10115' WHERE id = 2"),
        expect=loses({"public.customer.zip": 1}, gone_after=("customer.zip",)),
    ),
    Case(
        name="composite_type_changed",
        about="An attribute of a row type goes, and with it a part of every value; the archive has it whole, and restoring can't"
        " tell that what stands there since is that value without its part, so it leaves it.",
        revisions=(
            Revision("r1", sql("CREATE TYPE spot AS (x int, y int)")),
            Revision("r2", sql("CREATE TABLE pin (id int PRIMARY KEY, at spot)"), "op.drop_table('pin')"),
            Revision(
                "r3",
                sql("ALTER TYPE spot ADD ATTRIBUTE z int CASCADE"),
                sql("ALTER TYPE spot DROP ATTRIBUTE z CASCADE"),
            ),
        ),
        rows=("INSERT INTO pin VALUES (1, (1, 2, 3)), (2, NULL)",),
        expect=loses(
            {"public.pin.at": 1}, verdict={"r3": "reversible_with_loss"}, heads_after=("r2",), restored=False
        ),
    ),
    Case(
        name="extension_dropped",
        about="DROP EXTENSION … CASCADE takes its type, and so a column that the script never names.",
        revisions=there_and_back(
            ("CREATE EXTENSION vector", "ALTER TABLE customer ADD taste vector(3)"),
            ("DROP EXTENSION vector CASCADE",),
        ),
        rows=(THREE, "UPDATE customer SET taste = '[1,2,3.5]' WHERE id < 3"),
        expect=loses({"public.customer.taste": 2}, gone_after=("customer.taste",)),
    ),
)  # fmt: skip

NUMBERS = (
    Case(
        name="serial_table",
        about="The sequence goes with its table; restored rows must not meet a sequence that begins at 1.",
        revisions=grown(sql("CREATE TABLE ticket (id serial PRIMARY KEY, what text)"), "op.drop_table('ticket')"),
        rows=("INSERT INTO ticket (what) SELECT 'ticket ' || n FROM generate_series(1, 9) n", "DELETE FROM ticket WHERE id > 7"),
        expect=loses({"public.ticket": 7}, gone_after=("ticket",)),
    ),
    Case(
        name="sequence_alone",
        about="A sequence holds no rows, and its number is gone: invoices would begin at 1 again.",
        revisions=there_and_back(("CREATE SEQUENCE invoice_number",), ("DROP SEQUENCE invoice_number",)),
        rows=("SELECT setval('invoice_number', 4711)",),
        expect=works(),
    ),
    Case(
        name="serial_column_made_again",
        about="The dropped column comes back with a sequence of another name.",
        revisions=(
            Revision("r1", sql("CREATE TABLE ticket (id int PRIMARY KEY, number serial)", "ALTER SEQUENCE ticket_number_seq RENAME TO numbers")),
            Revision("r2", sql("ALTER TABLE ticket DROP number"), sql("ALTER TABLE ticket ADD number serial")),
        ),
        rows=("INSERT INTO ticket VALUES (1), (2)",),
        expect=works(there_after=("ticket.number",), drift="ticket_number_seq"),
    ),
    Case(
        name="identity_always",
        about="A table whose ids PostgreSQL alone may give: bringing rows back has to override it.",
        revisions=grown(
            sql("CREATE TABLE ticket (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text)"), "op.drop_table('ticket')"
        ),
        rows=("INSERT INTO ticket (what) VALUES ('a'), ('b'), ('c')", "DELETE FROM ticket WHERE id = 2"),
        expect=loses({"public.ticket": 2}, gone_after=("ticket",)),
    ),
    Case(
        name="identity_taken_off",
        about="The column stays with its values; who gives the next number changes.",
        revisions=there_and_back(
            ("ALTER TABLE customer ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 100)",),
            ("ALTER TABLE customer ALTER id DROP IDENTITY",),
        ),
        rows=(THREE,),
        expect=works(),
    ),
    Case(
        name="generated_column",
        about="Its values follow from other columns: nothing is lost.",
        revisions=there_and_back(
            ("ALTER TABLE customer ADD initial text GENERATED ALWAYS AS (left(name, 1)) STORED",),
            ("ALTER TABLE customer DROP initial",),
        ),
        rows=(THREE,),
        expect=works(gone_after=("customer.initial",)),
    ),
    Case(
        name="table_with_a_generated_column",
        about="Bringing rows back has to leave the generated column out.",
        revisions=grown(
            sql("CREATE TABLE box (id int PRIMARY KEY, w int, h int, area int GENERATED ALWAYS AS (w * h) STORED)"),
            "op.drop_table('box')",
        ),
        rows=("INSERT INTO box VALUES (1, 2, 3), (2, 4, NULL)",),
        expect=loses({"public.box": 2}, gone_after=("box",)),
    ),
)  # fmt: skip

PARTITIONS = (
    Case(
        name="partitioned_table",
        about="Dropping the parent drops the partitions.",
        revisions=(
            CUSTOMER,
            Revision("r2", f"{MEASURE.upgrade}\n{sql(MEASURE_2026)}", "op.drop_table('measure')"),
        ),
        rows=(MEASURED,),
        expect=loses(
            {"public.measure_2025": 1, "public.measure_2026": 2},
            gone_after=("measure", "measure_2025", "measure_2026"),
        ),
    ),
    Case(
        name="one_partition",
        about="One partition goes and the others stay.",
        revisions=(MEASURE, Revision("r2", sql(MEASURE_2026), "op.drop_table('measure_2026')")),
        rows=(MEASURED,),
        expect=loses({"public.measure_2026": 2}, gone_after=("measure_2026",), there_after=("measure_2025",)),
    ),
    Case(
        name="partition_detached",
        about="Its rows are out of the table's sight and still there; the upgrade back stumbles over it.",
        revisions=(MEASURE, Revision("r2", sql(MEASURE_2026), sql("ALTER TABLE measure DETACH PARTITION measure_2026"))),
        rows=(MEASURED,),
        expect=works(
            there_after=("measure_2026",),
            drift="+ table public.measure_2026",
            upgrade_fails="already exists",
            restored=False,
        ),
    ),
    Case(
        name="column_of_a_partitioned_table",
        about="A column of the parent goes from every partition.",
        revisions=(
            Revision("r1", f"{MEASURE.upgrade}\n{sql(MEASURE_2026)}"),
            Revision("r2", sql("ALTER TABLE measure ADD unit text"), sql("ALTER TABLE measure DROP unit")),
        ),
        rows=(MEASURED, "UPDATE measure SET unit = 'kg' WHERE value > 1"),
        expect=loses({"public.measure_2026.unit": 2}, gone_after=("measure.unit", "measure_2025.unit")),
    ),
    Case(
        name="inherited_table",
        about="A child by INHERITS goes; the parent's own rows stay.",
        revisions=grown(sql("CREATE TABLE vip (level int, PRIMARY KEY (id)) INHERITS (customer)"), "op.drop_table('vip')"),
        rows=(THREE, "INSERT INTO vip VALUES (7, 'Vi', NULL, 1)"),
        expect=loses({"public.vip": 1}, gone_after=("vip",), there_after=("customer",)),
    ),
    Case(
        name="unlogged_table",
        about="An unlogged table's rows are rows all the same.",
        revisions=grown(sql("CREATE UNLOGGED TABLE session (id text PRIMARY KEY)"), "op.drop_table('session')"),
        rows=("INSERT INTO session VALUES ('a'), ('b')",),
        expect=loses({"public.session": 2}, gone_after=("session",)),
    ),
)  # fmt: skip

DEPENDENTS = (
    Case(
        name="view_on_a_dropped_column",
        about="Somebody made a view by hand, and the column can't go.",
        revisions=there_and_back(("ALTER TABLE customer ADD phone text",), ("ALTER TABLE customer DROP phone",)),
        rows=(THREE, "CREATE VIEW phones AS SELECT id, phone FROM customer"),
        expect=fails("depend", there_after=("customer.phone", "phones")),
    ),
    Case(
        name="view_of_the_migration",
        about="The downgrade drops the view first, and puts the old one back.",
        revisions=(
            Revision("r1", f"{CUSTOMER.upgrade}\n{sql('CREATE VIEW names AS SELECT id, name FROM customer')}"),
            Revision(
                "r2",
                sql("ALTER TABLE customer ADD phone text", "CREATE OR REPLACE VIEW names AS SELECT id, name, phone FROM customer"),
                sql("DROP VIEW names", "ALTER TABLE customer DROP phone", "CREATE VIEW names AS SELECT id, name FROM customer"),
            ),
        ),
        rows=(THREE, "UPDATE customer SET phone = '030' WHERE id = 3"),
        expect=loses({"public.customer.phone": 1}, gone_after=("names.phone",), there_after=("names",)),
    ),
    Case(
        name="materialised_view",
        about="Its rows follow from others: nothing is lost.",
        revisions=there_and_back(
            ("CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS n FROM customer",), ("DROP MATERIALIZED VIEW totals",)
        ),
        rows=(THREE, "REFRESH MATERIALIZED VIEW totals"),
        expect=works(gone_after=("totals",)),
    ),
    Case(
        name="materialised_view_on_a_dropped_column",
        about="It holds the column like a view does.",
        revisions=there_and_back(("ALTER TABLE customer ADD phone text",), ("ALTER TABLE customer DROP phone",)),
        rows=(THREE, "CREATE MATERIALIZED VIEW phones AS SELECT phone FROM customer"),
        expect=fails("depend", there_after=("customer.phone", "phones")),
    ),
    Case(
        name="trigger_on_a_dropped_column",
        about="UPDATE OF names the column, so it can't go.",
        revisions=there_and_back(
            (
                "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
                "ALTER TABLE customer ADD phone text",
                "CREATE TRIGGER touched BEFORE UPDATE OF phone ON customer FOR EACH ROW EXECUTE FUNCTION touch()",
            ),
            ("ALTER TABLE customer DROP phone",),
        ),
        rows=(THREE,),
        expect=fails("depend", there_after=("customer.phone",)),
    ),
    Case(
        name="trigger_that_names_a_dropped_column_in_its_body",
        about="A body is a string: the column goes, and the next update of a customer fails.",
        revisions=there_and_back(
            (
                "ALTER TABLE customer ADD changes int",
                "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.changes = 1; RETURN NEW; END'",
                "CREATE TRIGGER touched BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION touch()",
            ),
            ("ALTER TABLE customer DROP changes", "UPDATE customer SET name = name"),
        ),
        rows=(THREE,),
        expect=fails("changes", there_after=("customer.changes",)),
    ),
    Case(
        name="trigger_that_writes",
        about="The downgrade updates customers, and a trigger of the schema deletes visits.",
        revisions=(
            Revision(
                "r1",
                f"{CUSTOMER.upgrade}\n"
                + sql(
                    "CREATE TABLE visit (id int PRIMARY KEY)",
                    "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM visit; RETURN NULL; END'",
                    "CREATE TRIGGER forgets AFTER UPDATE ON customer EXECUTE FUNCTION forget()",
                ),
            ),
            Revision("r2", sql("SELECT 1"), sql("UPDATE customer SET email = '-' WHERE email IS NULL")),
        ),
        rows=(THREE, "INSERT INTO visit VALUES (1), (2)"),
        expect=loses({"public.customer": 1, "public.visit": 2}),
    ),
    Case(
        name="function_left_behind",
        about="CREATE OR REPLACE without a DROP: harmless, and drift.",
        revisions=there_and_back(
            ("CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",), ("COMMENT ON FUNCTION one() IS NULL",)
        ),
        rows=(THREE,),
        expect=works(drift="+ function public.one()"),
    ),
    Case(
        name="policy_on_a_dropped_column",
        about="A row security policy names the column, so it can't go.",
        revisions=there_and_back(
            (
                "ALTER TABLE customer ADD tenant int",
                "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY own ON customer USING (tenant = 1)",
            ),
            ("ALTER TABLE customer DISABLE ROW LEVEL SECURITY", "ALTER TABLE customer DROP tenant"),
        ),
        rows=(THREE,),
        expect=fails("depend", there_after=("customer.tenant",)),
    ),
    Case(
        name="foreign_key_of_somebody_else",
        about="A table that no migration knows points to the one that shall go.",
        revisions=grown(sql("CREATE TABLE note (id int PRIMARY KEY)"), "op.drop_table('note')"),
        rows=("CREATE TABLE mine (note int REFERENCES note)",),
        expect=fails("depend", there_after=("note", "mine")),
    ),
    Case(
        name="drop_cascade",
        about="CASCADE takes along a foreign key and a view that the script never names.",
        revisions=grown(sql("CREATE TABLE note (id int PRIMARY KEY)"), sql("DROP TABLE note CASCADE")),
        rows=(
            "CREATE TABLE mine (note int REFERENCES note)",
            "CREATE VIEW notes AS SELECT id FROM note",
            "INSERT INTO note VALUES (1), (2)",
            "INSERT INTO mine VALUES (1)",
        ),
        # What is left of the hand-made table is what the schema before didn't have.
        expect=loses(
            {"public.note": 2}, gone_after=("note", "notes"), there_after=("mine",), drift="+ table public.mine"
        ),
    ),
    Case(
        name="drop_schema_cascade",
        about="A whole schema goes in one statement.",
        revisions=there_and_back(
            ("CREATE SCHEMA sales", "CREATE TABLE sales.deal (id int PRIMARY KEY)", "CREATE TABLE sales.lead (id int)"),
            ("DROP SCHEMA sales CASCADE",),
        ),
        rows=("INSERT INTO sales.deal VALUES (1)", "INSERT INTO sales.lead VALUES (1), (2)"),
        expect=loses({"sales.deal": 1, "sales.lead": 2}, gone_after=("deal", "lead")),
    ),
    Case(
        name="rule_that_writes",
        about="A rule turns the downgrade's DELETE into nothing: the rows stay, and NOT NULL fails over them.",
        revisions=there_and_back(
            ("CREATE RULE keep AS ON DELETE TO customer DO INSTEAD NOTHING",),
            ("DELETE FROM customer WHERE email IS NULL", "ALTER TABLE customer ALTER email SET NOT NULL"),
        ),
        rows=(THREE,),
        expect=fails("null"),
    ),
)  # fmt: skip

NAMES = (
    Case(
        name="constraint_without_a_name",
        about="Autogenerate writes drop_constraint(None, …), which nobody can run.",
        revisions=grown(
            "op.create_unique_constraint(None, 'customer', ['email'])", "op.drop_constraint(None, 'customer', type_='unique')"
        ),
        rows=(THREE,),
        expect=fails("name"),
    ),
    Case(
        name="index_that_is_not_there",
        about="The name differs from the one that the upgrade gave.",
        revisions=grown(
            "op.create_index('ix_customer_name', 'customer', ['name'])", "op.drop_index('customer_name_idx', table_name='customer')"
        ),
        rows=(THREE,),
        expect=fails("customer_name_idx"),
    ),
    Case(
        name="type_that_is_there_already",
        about="The downgrade makes a type that the upgrade never dropped.",
        revisions=(
            Revision("r1", MOOD),
            Revision(
                "r2",
                sql("ALTER TABLE face DROP mood"),
                "sa.Enum('sad', 'happy', name='mood').create(op.get_bind(), checkfirst=False)\n"
                + sql("ALTER TABLE face ADD mood mood"),
            ),
        ),
        rows=("INSERT INTO face VALUES (1)",),
        expect=fails("already exists"),
    ),
    Case(
        name="index_alone",
        about="Nothing but an index.",
        revisions=grown("op.create_index('by_name', 'customer', ['name'])", "op.drop_index('by_name', table_name='customer')"),
        rows=(THREE,),
        expect=works(),
    ),
    Case(
        name="index_that_differs",
        about="The index comes back without its predicate.",
        revisions=(
            Revision("r1", f"{CUSTOMER.upgrade}\n{sql('CREATE INDEX by_name ON customer (name) WHERE email IS NULL')}"),
            Revision("r2", sql("DROP INDEX by_name"), "op.create_index('by_name', 'customer', ['name'])"),
        ),
        rows=(THREE,),
        expect=works(drift="~ index public.by_name"),
    ),
    Case(
        name="comment_alone",
        about="Words, and no structure.",
        revisions=there_and_back(("COMMENT ON TABLE customer IS 'who buys'",), ("COMMENT ON TABLE customer IS NULL",)),
        rows=(THREE,),
        expect=works(),
    ),
    Case(
        name="grant_alone",
        about="A grant and its revocation.",
        revisions=there_and_back(("GRANT SELECT ON customer TO PUBLIC",), ("REVOKE SELECT ON customer FROM PUBLIC",)),
        rows=(THREE,),
        expect=works(),
    ),
    Case(
        name="grants_of_a_view_made_anew",
        about="The downgrade makes the view anew, and its grants are gone.",
        revisions=(
            Revision(
                "r1",
                f"{CUSTOMER.upgrade}\n"
                + sql("CREATE VIEW names AS SELECT name FROM customer", "GRANT SELECT ON names TO PUBLIC"),
            ),
            Revision(
                "r2",
                sql("DROP VIEW names"),
                sql("CREATE VIEW names AS SELECT name FROM customer"),
            ),
        ),
        rows=(THREE,),
        expect=works(drift="view public.names"),
    ),
    Case(
        name="owner_alone",
        about="The table gets its old owner back.",
        revisions=there_and_back(("ALTER TABLE customer OWNER TO pg_database_owner",), ("ALTER TABLE customer OWNER TO CURRENT_USER",)),
        rows=(THREE,),
        expect=works(),
    ),
    Case(
        name="column_back_as_nullable",
        about="The dropped column comes back, and no longer NOT NULL.",
        revisions=(
            Revision("r1", sql("CREATE TABLE customer (id int PRIMARY KEY, legacy text NOT NULL)")),
            Revision("r2", "op.drop_column('customer', 'legacy')", "op.add_column('customer', sa.Column('legacy', sa.Text))"),
        ),
        rows=("INSERT INTO customer VALUES (1), (2)",),
        expect=works(there_after=("customer.legacy",), drift="~ column public.customer.legacy"),
    ),
    Case(
        name="key_with_its_columns_in_another_order",
        about="The primary key comes back the other way round.",
        revisions=(
            Revision("r1", sql("CREATE TABLE line (invoice int, position int, CONSTRAINT line_pkey PRIMARY KEY (invoice, position))")),
            Revision(
                "r2",
                sql("ALTER TABLE line DROP CONSTRAINT line_pkey"),
                sql("ALTER TABLE line ADD CONSTRAINT line_pkey PRIMARY KEY (position, invoice)"),
            ),
        ),
        rows=("INSERT INTO line VALUES (1, 1), (1, 2)",),
        expect=works(drift="~ constraint public.line.line_pkey"),
    ),
    Case(
        name="action_of_a_foreign_key_is_lost",
        about="The foreign key comes back without its ON DELETE CASCADE.",
        revisions=(
            CUSTOMER,
            Revision(
                "r2",
                sql("CREATE TABLE invoice (id int PRIMARY KEY, customer int, CONSTRAINT its FOREIGN KEY (customer) REFERENCES customer ON DELETE CASCADE)"),
            ),
            Revision(
                "r3",
                "op.drop_constraint('its', 'invoice')",
                "op.create_foreign_key('its', 'invoice', 'customer', ['customer'], ['id'])",
            ),
        ),
        rows=(THREE, "INSERT INTO invoice VALUES (1, 1)"),
        expect=works(
            verdict={"r3": "reversible"}, heads_after=("r2",), drift="~ constraint public.invoice.its"
        ),
    ),
)  # fmt: skip

SCHEMAS = (
    Case(
        name="several_schemas",
        about="Tables of the same name in two schemas: one goes, the other stays.",
        revisions=there_and_back(
            ("CREATE SCHEMA sales", "CREATE TABLE sales.customer (id int PRIMARY KEY, name text)"),
            ("DROP TABLE sales.customer", "DROP SCHEMA sales"),
        ),
        rows=(THREE, "INSERT INTO sales.customer VALUES (1, 'Dan'), (2, 'Eve')"),
        expect=loses({"sales.customer": 2}, there_after=("customer",)),
    ),
    Case(
        name="schema_for_each_tenant_by_the_script",
        about="The script goes through the tenants' schemas that it finds.",
        revisions=(
            Revision("r1", "for t in ('a', 'b'):\n    op.execute(f'CREATE SCHEMA tenant_{t}')\n    op.execute(f'CREATE TABLE tenant_{t}.bill (id int PRIMARY KEY)')"),
            Revision(
                "r2",
                "for schema in tenants():\n    op.add_column('bill', sa.Column('total', sa.Integer), schema=schema)",
                "for schema in tenants():\n    op.drop_column('bill', 'total', schema=schema)",
                head="def tenants():\n"
                "    return op.get_bind().scalars(sa.text(\"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tenant%'\")).all()",
            ),
        ),
        rows=("INSERT INTO tenant_a.bill VALUES (1, 10), (2, NULL)", "INSERT INTO tenant_b.bill VALUES (1, 20), (2, 30)"),
        expect=loses({"tenant_a.bill.total": 1, "tenant_b.bill.total": 2}, gone_after=("bill.total",)),
    ),
    Case(
        name="table_moved_to_another_schema",
        about="SET SCHEMA: the same rows elsewhere.",
        revisions=there_and_back(
            ("CREATE SCHEMA crm", "ALTER TABLE customer SET SCHEMA crm"),
            ("ALTER TABLE crm.customer SET SCHEMA public", "DROP SCHEMA crm"),
        ),
        rows=(THREE.replace("customer", "crm.customer"),),
        expect=works(moved={"crm.customer": "public.customer"}, there_after=("customer",)),
    ),
    Case(
        name="row_security_of_the_owner",
        about="The owner sees every row, whatever the policy hides from others: all three values count.",
        revisions=there_and_back(
            (
                "ALTER TABLE customer ADD secret text",
                "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY own ON customer USING (id = 1)",
            ),
            (
                "DROP POLICY own ON customer",
                "ALTER TABLE customer DISABLE ROW LEVEL SECURITY",
                "ALTER TABLE customer DROP secret",
            ),
        ),
        rows=(THREE, "UPDATE customer SET secret = 'psst'"),
        ordinary_role=True,
        expect=loses({"public.customer.secret": 3}, gone_after=("customer.secret",)),
    ),
    Case(
        name="table_of_another_owner",
        about="Somebody gave the table to another role: who migrates may no longer, whatever a superuser's rehearsal shows.",
        revisions=there_and_back(("ALTER TABLE customer ADD phone text",), ("ALTER TABLE customer DROP phone",)),
        rows=(THREE, "ALTER TABLE customer OWNER TO pg_monitor"),
        ordinary_role=True,
        expect=fails("owner", there_after=("customer.phone",)),
    ),
    Case(
        name="row_security_forced_upon_the_owner",
        about="The role that migrates sees one of three rows, and drops the values of all: who can't count must not drop.",
        revisions=there_and_back(
            (
                "ALTER TABLE customer ADD secret text",
                "ALTER TABLE customer ENABLE ROW LEVEL SECURITY",
                "ALTER TABLE customer FORCE ROW LEVEL SECURITY",
                "CREATE POLICY own ON customer USING (id = 1)",
            ),
            ("ALTER TABLE customer DROP secret",),
        ),
        rows=(THREE, "UPDATE customer SET secret = 'psst'"),
        ordinary_role=True,
        expect=Expected(
            verdict={"r2": "unknown"},
            why={"r2": "row-level security"},
            lost={"public.customer.secret": 3},
            outcome="not_run",
            heads_after=("r2",),
        ),
    ),
)  # fmt: skip

CASES = (*TYPES, *NUMBERS, *PARTITIONS, *DEPENDENTS, *NAMES, *SCHEMAS)
