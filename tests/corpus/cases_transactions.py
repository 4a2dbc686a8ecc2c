"""Where a transaction ends, and what stands if the way back breaks off."""

from tests.corpus.case import CUSTOMER, THREE, Case, Expected, Revision, fails, grown, loses, sql, works

from rollbackd.settings import Duration

INDEX = sql("CREATE INDEX by_name ON customer (name)")
ALONE = frozenset({"r2"})
# Four revisions; taking off the third fails, as two customers lack the email that it wants back.
SECOND_FAILS = (
    CUSTOMER,
    Revision("r2", sql("CREATE TABLE note (id int)"), "op.drop_table('note')"),
    Revision(
        "r3",
        sql("ALTER TABLE customer ALTER email DROP NOT NULL"),
        sql("ALTER TABLE customer ALTER email SET NOT NULL"),
    ),
    Revision("r4", sql("CREATE TABLE invoice (id int)"), "op.drop_table('invoice')"),
)
SECOND_FAILS_ROWS = (THREE, "INSERT INTO note VALUES (1)", "INSERT INTO invoice VALUES (1), (2)")

CASES = (
    Case(
        name="own_commit",
        about="The revision commits by itself, env.py doesn't: the column is gone, the stamp stays, Alembic says all is well.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            "op.drop_column('customer', 'phone')\nop.get_bind().commit()",
        ),
        rows=(THREE,),
        env="no_commit",
        expect=Expected(
            verdict={"r2": "will_fail"},
            why={"r2": "commit"},
            outcome="neither",
            heads_after=("r2",),
            alone=ALONE,
            gone_after=("customer.phone",),
        ),
    ),
    Case(
        name="own_commit_under_a_transaction_of_env_py",
        about="The same where env.py began the transaction: it ends with an error, and the column is gone all the same.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            "op.drop_column('customer', 'phone')\nop.get_bind().commit()",
        ),
        rows=(THREE,),
        env="own_begin",
        expect=Expected(
            verdict={"r2": "will_fail"},
            why={"r2": "transaction"},
            outcome="neither",
            heads_after=("r2",),
            alone=ALONE,
            gone_after=("customer.phone",),
        ),
    ),
    Case(
        name="autocommit_block",
        about="It leaves the transaction properly: it works, alone.",
        revisions=grown(INDEX, f"with op.get_context().autocommit_block():\n    {sql('DROP INDEX by_name')}"),
        rows=(THREE,),
        expect=works(alone=ALONE),
    ),
    Case(
        name="concurrently_in_an_autocommit_block",
        about="How an index is dropped concurrently.",
        revisions=grown(
            INDEX,
            "with op.get_context().autocommit_block():\n"
            "    op.drop_index('by_name', table_name='customer', postgresql_concurrently=True)",
        ),
        rows=(THREE,),
        expect=works(alone=ALONE),
    ),
    Case(
        name="concurrently_in_a_transaction",
        about="How it can't be dropped.",
        revisions=grown(
            INDEX, "op.drop_index('by_name', table_name='customer', postgresql_concurrently=True)"
        ),
        rows=(THREE,),
        expect=fails("transaction block", alone=ALONE),
    ),
    Case(
        name="autocommit_block_before_a_failure",
        about="The block committed; what came after it didn't: the stamp says r2 and its index is gone.",
        revisions=(
            CUSTOMER,
            Revision(
                "r2",
                INDEX,
                f"with op.get_context().autocommit_block():\n    {sql('DROP INDEX by_name')}\nnowhere()",
            ),
            Revision("r3", sql("CREATE TABLE note (id int)"), "op.drop_table('note')"),
        ),
        rows=(THREE,),
        to="r1",
        expect=Expected(
            verdict={"r3": "reversible", "r2": "will_fail"},
            why={"r2": "nowhere"},
            outcome="neither",
            heads_after=("r2",),
            alone=ALONE,
            gone_after=("note",),
        ),
    ),
    Case(
        name="second_of_three_fails_in_one_transaction",
        about="All or nothing: the first is undone with the second.",
        revisions=SECOND_FAILS,
        rows=SECOND_FAILS_ROWS,
        to="r1",
        expect=Expected(
            verdict={"r4": "reversible_with_loss", "r3": "will_fail"},
            why={"r3": "null"},
            outcome="from",
            heads_after=("r4",),
            there_after=("invoice", "note"),
        ),
    ),
    Case(
        name="second_of_three_fails_one_transaction_each",
        about="transaction_per_migration: the first stays taken off.",
        revisions=SECOND_FAILS,
        rows=SECOND_FAILS_ROWS,
        to="r1",
        env="per_migration",
        expect=Expected(
            verdict={"r4": "reversible_with_loss", "r3": "will_fail"},
            why={"r3": "null"},
            lost={"public.invoice": 2},
            outcome="intermediate",
            heads_after=("r3",),
            gone_after=("invoice",),
            there_after=("note",),
        ),
    ),
    Case(
        name="one_transaction_each",
        about="transaction_per_migration, and all goes well.",
        revisions=SECOND_FAILS,
        rows=("INSERT INTO customer VALUES (1, 'Ann', 'ann@x')", *SECOND_FAILS_ROWS[1:]),
        to="r1",
        env="per_migration",
        # r3's downgrade puts a NOT NULL where r1 had none.
        expect=Expected(
            verdict={"r4": "reversible_with_loss", "r3": "reversible", "r2": "reversible_with_loss"},
            lost={"public.invoice": 2, "public.note": 1},
            gone_after=("invoice", "note"),
            drift="~ column public.customer.email",
        ),
    ),
    Case(
        name="no_transaction_at_all",
        about="env.py's engine commits each statement: half a revision stays done.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            "op.drop_column('customer', 'phone')\nop.drop_column('customer', 'fax')",
        ),
        rows=(THREE,),
        env="autocommit",
        expect=Expected(
            verdict={"r2": "will_fail"},
            why={"r2": "fax"},
            outcome="neither",
            heads_after=("r2",),
            alone=ALONE,
            gone_after=("customer.phone",),
        ),
    ),
    Case(
        name="no_transaction_at_all_and_it_works",
        about="env.py's engine commits each statement, and each works.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))", "op.drop_column('customer', 'phone')"
        ),
        rows=(THREE, "UPDATE customer SET phone = '030'"),
        env="autocommit",
        expect=loses({"public.customer.phone": 3}, alone=ALONE, gone_after=("customer.phone",)),
    ),
    Case(
        name="statement_timeout",
        about="One statement takes longer than the configuration allows.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            "op.drop_column('customer', 'phone')\nop.execute('SELECT pg_sleep(20)')",
        ),
        rows=(THREE,),
        settings={"statement_timeout": Duration(1)},
        expect=fails("statement timeout", there_after=("customer.phone",)),
    ),
    Case(
        name="deferred_constraint",
        about="The violation shows at COMMIT alone, when every statement has worked.",
        revisions=grown(
            sql("CREATE TABLE invoice (id int PRIMARY KEY, customer int)"),
            sql(
                "ALTER TABLE invoice ADD CONSTRAINT invoice_customer_fkey FOREIGN KEY (customer) REFERENCES customer"
                " DEFERRABLE INITIALLY DEFERRED",
                "INSERT INTO invoice VALUES (0, 0)",
            ),
        ),
        rows=(THREE, "INSERT INTO invoice VALUES (7, 1)"),
        expect=fails("invoice_customer_fkey", there_after=("invoice",)),
    ),
    Case(
        name="commit_as_sql",
        about="A COMMIT in a statement's text ends the transaction behind everybody's back.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            sql("ALTER TABLE customer DROP COLUMN phone", "COMMIT", "ALTER TABLE customer DROP COLUMN fax"),
        ),
        rows=(THREE,),
        expect=Expected(
            verdict={"r2": "will_fail"},
            why={"r2": "fax"},
            outcome="neither",
            heads_after=("r2",),
            alone=ALONE,
            gone_after=("customer.phone",),
        ),
    ),
)
