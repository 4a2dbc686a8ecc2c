"""What a downgrade() is written like: not at all, with a question, with conditions, with code of its own."""

from tests.corpus.case import (
    CUSTOMER,
    THREE,
    Case,
    Expected,
    Revision,
    fails,
    grown,
    loses,
    refuses,
    sql,
    works,
)

PHONE = "op.add_column('customer', sa.Column('phone', sa.Text))"
WITH_PHONES = (THREE, "UPDATE customer SET phone = '0' || id WHERE id < 3")
DROP_PHONE = "op.drop_column('customer', 'phone')"


def stays(sentence: str) -> Expected:
    """Declared or read to be irreversible: nothing is run."""
    return refuses(sentence, "r2", verdict={"r2": "irreversible"}, why={"r2": sentence})


CASES = (
    Case(
        name="raises",
        about="Declared irreversible.",
        revisions=grown(PHONE, "raise NotImplementedError('one way')"),
        rows=WITH_PHONES,
        expect=stays("declared irreversible"),
    ),
    Case(
        name="missing_downgrade",
        about="Nobody wrote a downgrade().",
        revisions=grown(PHONE, None),
        rows=WITH_PHONES,
        expect=stays("has no downgrade()"),
    ),
    Case(
        name="silently_irreversible",
        about="The upgrade does something and the downgrade `pass`: the stamp would move and the schema not.",
        revisions=grown(PHONE, "pass"),
        rows=WITH_PHONES,
        expect=stays("silently irreversible"),
    ),
    Case(
        name="irreversible_further_down",
        about="The first step is fine, the second is a `raise`: nothing may begin.",
        revisions=(
            CUSTOMER,
            Revision("r2", PHONE, "raise RuntimeError('no')"),
            Revision("r3", sql("CREATE TABLE note (id int)"), "op.drop_table('note')"),
        ),
        to="r1",
        expect=refuses(
            "r2 is declared irreversible",
            "r3",
            verdict={"r3": "reversible", "r2": "irreversible"},
            why={"r2": "declared irreversible"},
        ),
    ),
    Case(
        name="raises_on_a_condition",
        about="It looks first, and raises because of what it finds.",
        revisions=grown(
            PHONE,
            """
            if op.get_bind().execute(sa.text("SELECT count(phone) FROM customer")).scalar_one():
                raise RuntimeError("phones would be lost")
            op.drop_column('customer', 'phone')
            """,
        ),
        rows=WITH_PHONES,
        expect=fails("phones would be lost"),
    ),
    Case(
        name="raises_on_a_condition_that_is_not_met",
        about="The same script, and no phones: it works.",
        revisions=grown(
            PHONE,
            """
            if op.get_bind().execute(sa.text("SELECT count(phone) FROM customer")).scalar_one():
                raise RuntimeError("phones would be lost")
            op.drop_column('customer', 'phone')
            """,
        ),
        rows=(THREE,),
        expect=works(gone_after=("customer.phone",)),
    ),
    Case(
        name="asks_a_question",
        about="`input()` in a function that downgrade() calls.",
        revisions=grown(PHONE, f"sure()\n{DROP_PHONE}", head="def sure():\n    input('Sure?')\n"),
        rows=WITH_PHONES,
        expect=stays("asks a question"),
    ),
    Case(
        name="exits",
        about="The script gives up by sys.exit(), which no `except Exception` sees.",
        revisions=grown(PHONE, f"{DROP_PHONE}\nsys.exit('not today')", head="import sys"),
        rows=WITH_PHONES,
        expect=fails("exit"),
    ),
    Case(
        name="python_error",
        about="A name that was never defined, found only when it runs.",
        revisions=grown(PHONE, f"{DROP_PHONE}\nop.drop_column(TABEL, 'email')"),
        rows=WITH_PHONES,
        expect=fails("TABEL"),
    ),
    Case(
        name="import_error",
        about="The script imports what this interpreter lacks.",
        revisions=grown(PHONE, DROP_PHONE),
        rows=WITH_PHONES,
        afterwards=(Revision("r2", PHONE, DROP_PHONE, head="import no_such_module_anywhere"),),
        expect=refuses("no_such_module_anywhere", "r2"),
    ),
    Case(
        name="syntax_error",
        about="The script was left half edited.",
        revisions=grown(PHONE, DROP_PHONE),
        rows=WITH_PHONES,
        afterwards=(Revision("r2", PHONE, "op.drop_column('customer',"),),
        expect=refuses("SyntaxError", "r2"),
    ),
    Case(
        name="settings_read_from_the_environment",
        about="The script reads a setting when it is loaded, and the configuration gives it.",
        revisions=grown(
            "op.add_column(TABLE, sa.Column('phone', sa.Text))",
            "op.drop_column(TABLE, 'phone')",
            head="import os\n\nTABLE = os.environ['SHOP_TABLE']",
        ),
        rows=WITH_PHONES,
        settings={"environment": {"SHOP_TABLE": "customer"}},
        expect=loses({"public.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
    Case(
        name="setting_that_is_missing",
        about="The script needs a setting that nobody gives it.",
        revisions=grown(PHONE, DROP_PHONE),
        rows=WITH_PHONES,
        afterwards=(Revision("r2", PHONE, DROP_PHONE, head="import os\n\nos.environ['SHOP_LICENSE']"),),
        expect=refuses("SHOP_LICENSE", "r2"),
    ),
    Case(
        name="helpers_of_the_project",
        about="The script imports a module that lies in the project's folder.",
        revisions=grown(PHONE, "drop(op, 'customer', 'phone')", head="from shop_helpers import drop"),
        files={"shop_helpers.py": "def drop(op, table, column):\n    op.drop_column(table, column)\n"},
        env="settings",
        rows=WITH_PHONES,
        expect=loses({"public.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
    Case(
        name="reads_and_writes_rows",
        about="It goes through the rows in Python: nothing of that can be rendered.",
        revisions=grown(
            """
            op.add_column('customer', sa.Column('first', sa.Text))
            op.add_column('customer', sa.Column('last', sa.Text))
            op.drop_column('customer', 'name')
            """,
            """
            op.add_column('customer', sa.Column('name', sa.Text))
            bind = op.get_bind()
            for id, first, last in bind.execute(sa.text("SELECT id, first, last FROM customer")).all():
                bind.execute(sa.text("UPDATE customer SET name = :name WHERE id = :id"), {"id": id, "name": f"{first} {last}"})
            op.drop_column('customer', 'first')
            op.drop_column('customer', 'last')
            """,
        ),
        rows=(
            "INSERT INTO customer (id, email, first, last)"
            " VALUES (1, 'ann@x', 'Ann', 'Lee'), (2, NULL, 'Bob', 'Ray'), (3, 'cy@x', 'Cy', NULL)",
        ),
        expect=loses(
            {"public.customer.first": 3, "public.customer.last": 2},
            there_after=("customer.name",),
            gone_after=("customer.first", "customer.last"),
        ),
    ),
    Case(
        name="statements_made_of_the_catalog",
        about="It drops whatever it finds by a pattern in the catalog.",
        revisions=grown(
            sql("CREATE TABLE tmp_a (id int)", "CREATE TABLE tmp_b (id int)"),
            """
            for table in sa.inspect(op.get_bind()).get_table_names():
                if table.startswith('tmp_'):
                    op.drop_table(table)
            """,
        ),
        rows=("INSERT INTO tmp_a VALUES (1)", "INSERT INTO tmp_b VALUES (1), (2)"),
        expect=loses({"public.tmp_a": 1, "public.tmp_b": 2}, gone_after=("tmp_a", "tmp_b")),
    ),
    Case(
        name="do_block",
        about="The column goes in a DO block, where a reader of SQL sees a string.",
        revisions=grown(
            PHONE,
            sql("DO $$ BEGIN EXECUTE 'ALTER TABLE customer DROP COLUMN ' || quote_ident('phone'); END $$"),
        ),
        rows=WITH_PHONES,
        expect=loses({"public.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
    Case(
        name="batch_alter_table",
        about="As projects write it that also run on SQLite.",
        revisions=grown(
            PHONE, "with op.batch_alter_table('customer') as batch:\n    batch.drop_column('phone')"
        ),
        rows=WITH_PHONES,
        expect=loses({"public.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
    Case(
        name="drops_what_an_earlier_revision_removed",
        about="The downgrade names a table that is not there any more.",
        revisions=grown(sql("CREATE TABLE note (id int)", "DROP TABLE note"), "op.drop_table('note')"),
        rows=(THREE,),
        expect=fails("note"),
    ),
    Case(
        name="only_if_it_is_there",
        about="IF EXISTS: it works, whatever is there.",
        revisions=grown(
            sql("CREATE TABLE note (id int)", "DROP TABLE note"), sql("DROP TABLE IF EXISTS note")
        ),
        rows=(THREE,),
        expect=works(there_after=("customer",)),
    ),
)
