"""env.py as people have it: how it comes by its connection, and what a rehearsal must not follow it to."""

from collections.abc import Mapping

from tests.corpus.case import THREE, Case, Expected, Revision, grown, loses, sql

PHONE = grown("op.add_column('customer', sa.Column('phone', sa.Text))", "op.drop_column('customer', 'phone')")
PHONES = (THREE, "UPDATE customer SET phone = '030' WHERE id < 3")
TWO_PHONES = {"public.customer.phone": 2}
VISIT = "CREATE TABLE visit (id serial PRIMARY KEY, who text)"


def in_env(env: str, about: str, **more: object) -> Case:
    """Two phones go, by this env.py."""
    values: Mapping[str, object] = {
        "revisions": PHONE,
        "rows": PHONES,
        "expect": loses(TWO_PHONES, gone_after=("customer.phone",)),
        **more,
    }
    return Case(name=f"env_{env}", about=about, env=env, **values)  # type: ignore[arg-type]


def unknown(why: str) -> Expected:
    """It can't be rehearsed, for it would reach the target; run nevertheless, it works."""
    return loses(TWO_PHONES, verdict={"r2": "unknown"}, why={"r2": why}, gone_after=("customer.phone",))


CASES = (
    in_env("plain", "The generic template, with the address in its ini file."),
    in_env("option", "The generic template, and rollbackd sets sqlalchemy.url."),
    in_env("environment", "The address is in an environment variable."),
    in_env("settings", "The address comes from the application's own settings module."),
    in_env("own_begin", "env.py begins the transaction by itself."),
    in_env("async", "An asynchronous engine with asyncpg."),
    in_env("x_argument", "The database's name is given by `-x`."),
    in_env(
        "creator", "create_engine(creator=…), to wherever the environment says: that can be led to scratch."
    ),
    in_env(
        "own_creator",
        "create_engine(creator=…) to an address that is written down: a rehearsal must not follow it.",
        expect=unknown("connection of its own"),
    ),
    in_env(
        "raw_driver",
        "env.py writes a row on a connection of its own, each time that it is loaded.",
        prepare=(VISIT,),
        expect=unknown("connection of its own"),
    ),
    in_env("subprocess", "env.py asks a program for the address.", expect=unknown("process of its own")),
    in_env(
        "version_table",
        "The version table has another name and lies in a schema of its own.",
        prepare=("CREATE SCHEMA meta",),
    ),
    in_env(
        "search_path",
        "All that isn't qualified lies in a schema that the connection's search_path names.",
        prepare=("CREATE SCHEMA shop",),
        rows=("SET search_path = shop; " + "; ".join(PHONES),),
        expect=loses({"shop.customer.phone": 2}, gone_after=("customer.phone",)),
    ),
    in_env(
        "tenants",
        "env.py goes through the tenants, each with its schema and version table.",
        prepare=("CREATE SCHEMA tenant_a", "CREATE SCHEMA tenant_b"),
        rows=tuple(f"SET search_path = tenant_{t}; " + "; ".join(PHONES) for t in "ab"),
        expect=loses(
            {"tenant_a.customer.phone": 2, "tenant_b.customer.phone": 2}, gone_after=("customer.phone",)
        ),
    ),
    Case(
        name="ini_of_another_name",
        about="The ini file and its section have names of their own.",
        revisions=PHONE,
        rows=PHONES,
        settings={"ini": "shop.ini", "section": "shop"},
        expect=loses(TWO_PHONES, gone_after=("customer.phone",)),
    ),
    Case(
        name="ordinary_role",
        about="The role that migrates owns the database and is nothing more.",
        revisions=PHONE,
        rows=PHONES,
        ordinary_role=True,
        expect=loses(TWO_PHONES, gone_after=("customer.phone",)),
    ),
    Case(
        name="raw_driver_in_the_downgrade",
        about="The downgrade writes on a connection of its own, which a rehearsal must not let reach the target.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            """
            with psycopg.connect("@LIBPQ@") as other:
                other.execute("INSERT INTO visit (who) VALUES ('downgrade')")
            op.drop_column('customer', 'phone')
            """,
            head="import psycopg",
        ),
        prepare=(VISIT,),
        rows=PHONES,
        expect=unknown("connection of its own"),
    ),
    Case(
        name="engine_of_its_own_in_the_downgrade",
        about="The downgrade makes an engine: SQLAlchemy's do_connect leads it to scratch.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            """
            with sa.create_engine("@URL@").begin() as other:
                other.execute(sa.text("INSERT INTO visit (who) VALUES ('downgrade')"))
            op.drop_column('customer', 'phone')
            """,
        ),
        prepare=(VISIT,),
        rows=PHONES,
        expect=loses(TWO_PHONES, gone_after=("customer.phone",)),
    ),
    Case(
        name="subprocess_in_the_downgrade",
        about="The downgrade starts a program that writes: a rehearsal must not start it.",
        revisions=grown(
            "op.add_column('customer', sa.Column('phone', sa.Text))",
            """
            code = "import psycopg; psycopg.connect('@LIBPQ@', autocommit=True).execute('INSERT INTO visit DEFAULT VALUES')"
            subprocess.run([sys.executable, "-c", code], check=True)
            op.drop_column('customer', 'phone')
            """,
            head="import subprocess\nimport sys",
        ),
        prepare=(VISIT,),
        rows=PHONES,
        expect=unknown("process of its own"),
    ),
    Case(
        name="http_in_the_downgrade",
        about="The downgrade calls a service first: nothing of the world may be reached while it is rehearsed.",
        revisions=(
            *PHONE,
            Revision(
                "r3",
                sql("CREATE TABLE note (id int PRIMARY KEY)"),
                """
                try:
                    socket.create_connection(("127.0.0.1", 9), timeout=1).close()
                except OSError:
                    pass
                op.drop_table('note')
                """,
                head="import socket",
            ),
        ),
        rows=("INSERT INTO note VALUES (1)",),
        expect=Expected(
            verdict={"r3": "unknown"},
            why={"r3": "connects to"},
            lost={"public.note": 1},
            heads_after=("r2",),
            gone_after=("note",),
        ),
    ),
)
