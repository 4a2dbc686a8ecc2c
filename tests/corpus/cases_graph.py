"""The revision graph: what a person means by a name, and which heads remain."""

from tests.corpus.case import CUSTOMER, THREE, Case, Expected, Revision, grown, loses, refuses, sql, works

EMAIL = grown("op.add_column('customer', sa.Column('phone', sa.Text))", "op.drop_column('customer', 'phone')")
BLUE = Revision("blue1", sql("CREATE TABLE blue (id int)"), "op.drop_table('blue')", down=("r1",))
RED = Revision("red1", sql("CREATE TABLE red (id int)"), "op.drop_table('red')", down=("r1",))
MERGE = Revision("m1", down=("blue1", "red1"))
TWO_OF_EACH = ("INSERT INTO blue VALUES (1), (2)", "INSERT INTO red VALUES (1), (2), (3)")
LONG_IDS = (
    Revision("a1b2c3d4", CUSTOMER.upgrade, CUSTOMER.downgrade),
    Revision(
        "a1b2ffff", "op.add_column('customer', sa.Column('a', sa.Text))", "op.drop_column('customer', 'a')"
    ),
    Revision(
        "beef0000", "op.add_column('customer', sa.Column('b', sa.Text))", "op.drop_column('customer', 'b')"
    ),
)

CASES = (
    Case(
        name="unknown_stamp",
        about="A newer release migrated, and its script isn't here.",
        revisions=EMAIL,
        rows=("UPDATE alembic_version SET version_num = 'zzz'",),
        expect=refuses("zzz has no script here", "zzz"),
    ),
    Case(
        name="minus_one_at_two_heads",
        about="Alembic warns and drops an arbitrary branch's table.",
        revisions=(CUSTOMER, BLUE, RED),
        expect=refuses("ambiguous", "blue1", "red1"),
    ),
    Case(
        name="below_two_heads",
        about="A revision below both heads is plain: both branches come off.",
        revisions=(CUSTOMER, BLUE, RED),
        rows=TWO_OF_EACH,
        to="r1",
        expect=Expected(
            verdict={"blue1": "reversible_with_loss", "red1": "reversible_with_loss"},
            lost={"public.blue": 2, "public.red": 3},
            gone_after=("blue", "red"),
        ),
    ),
    Case(
        name="another_branch",
        about="What is asked for was never applied here.",
        revisions=(CUSTOMER, BLUE, RED),
        at="blue1",
        to="red1",
        expect=refuses("another branch", "blue1"),
    ),
    Case(
        name="minus_one_at_a_merge_point",
        about="Below a merge point lie two revisions; which one is `-1`?",
        revisions=(CUSTOMER, BLUE, RED, MERGE),
        expect=refuses("ambiguous", "m1"),
    ),
    Case(
        name="below_a_merge_point_by_one_name",
        about="`downgrade blue1` ends with two heads, and not at blue1: that has to be said.",
        revisions=(CUSTOMER, BLUE, RED, MERGE),
        to="blue1",
        expect=refuses("leaves the heads blue1, red1", "m1"),
    ),
    Case(
        name="below_a_merge_point_by_both_names",
        about="Both heads are named: the merge point comes off and nothing else.",
        revisions=(CUSTOMER, BLUE, RED, MERGE),
        rows=TWO_OF_EACH,
        to="blue1,red1",
        typed=("blue1",),
        expect=Expected(
            verdict={"m1": "reversible"}, heads_after=("blue1", "red1"), there_after=("blue", "red")
        ),
    ),
    Case(
        name="across_a_merge_point",
        about="From above a merge point to below both branches.",
        revisions=(CUSTOMER, BLUE, RED, MERGE),
        rows=TWO_OF_EACH,
        to="r1",
        expect=Expected(
            verdict={"m1": "reversible", "blue1": "reversible_with_loss", "red1": "reversible_with_loss"},
            lost={"public.blue": 2, "public.red": 3},
            gone_after=("blue", "red"),
        ),
    ),
    Case(
        name="depends_on",
        about="A branch of its own that leans on another: taking off what it leans on takes it off too.",
        revisions=(
            CUSTOMER,
            Revision("r2", sql("CREATE TABLE invoice (id int)"), "op.drop_table('invoice')"),
            Revision(
                "x1",
                sql("CREATE TABLE extra (id int)"),
                "op.drop_table('extra')",
                down=(),
                depends_on=("r2",),
            ),
        ),
        rows=("INSERT INTO extra VALUES (1)", "INSERT INTO invoice VALUES (1), (2)"),
        to="r1",
        expect=Expected(
            verdict={"x1": "reversible_with_loss", "r2": "reversible_with_loss"},
            lost={"public.extra": 1, "public.invoice": 2},
            gone_after=("extra", "invoice"),
            there_after=("customer",),
        ),
    ),
    Case(
        name="branch_label",
        about="A label names a branch and not where to stop.",
        revisions=(CUSTOMER, Revision("blue1", down=("r1",), branch_labels=("blue",)), RED),
        to="blue",
        expect=refuses("branch label", "blue1", "red1"),
    ),
    Case(
        name="relative_to_a_branch_label",
        about="`blue@-1`, for which Alembic has a bare AssertionError where the branch is down already.",
        revisions=(CUSTOMER, Revision("blue1", down=("r1",), branch_labels=("blue",)), RED),
        to="blue@-1",
        expect=refuses("relative to a branch", "blue1", "red1"),
    ),
    Case(
        name="partial_id",
        about="An unambiguous beginning of an id is that id.",
        revisions=LONG_IDS,
        rows=("INSERT INTO customer VALUES (1, 'Ann', NULL, 'a', 'b')",),
        to="a1b2f",
        expect=Expected(
            verdict={"beef0000": "reversible_with_loss"},
            lost={"public.customer.b": 1},
            heads_after=("a1b2ffff",),
            gone_after=("customer.b",),
        ),
    ),
    Case(
        name="ambiguous_partial_id",
        about="Two ids begin like this.",
        revisions=LONG_IDS,
        to="a1b2",
        expect=refuses("is the beginning of a1b2c3d4, a1b2ffff", "beef0000"),
    ),
    Case(
        name="target_equal",
        about="Alembic calls it a success; there is nothing to roll back.",
        revisions=EMAIL,
        to="r2",
        expect=refuses("already", "r2"),
    ),
    Case(
        name="target_ahead",
        about="That would be an upgrade.",
        revisions=EMAIL,
        at="r1",
        to="r2",
        expect=refuses("ahead", "r1"),
    ),
    Case(
        name="unknown_revision",
        about="Nobody has a script of that name.",
        revisions=EMAIL,
        to="nosuch",
        expect=refuses("no script has the revision nosuch", "r2"),
    ),
    Case(
        name="below_base",
        about="More steps than there are.",
        revisions=EMAIL,
        to="-3",
        expect=refuses("goes below base", "r2"),
    ),
    Case(
        name="to_base",
        about="Everything comes off, and the version table is empty.",
        revisions=EMAIL,
        rows=(
            THREE.replace("'ann@x'", "'ann@x', '030'")
            .replace("NULL", "NULL, NULL")
            .replace("'cy@x'", "'cy@x', '040'"),
        ),
        to="base",
        expect=Expected(
            verdict={"r2": "reversible_with_loss", "r1": "reversible_with_loss"},
            lost={"public.customer.phone": 2, "public.customer": 3},
            heads_after=(),
            gone_after=("customer",),
        ),
    ),
    Case(
        name="minus_two",
        about="Two steps down, counted from where the database stands.",
        revisions=(*EMAIL, Revision("r3", sql("CREATE TABLE note (id int)"), "op.drop_table('note')")),
        rows=("INSERT INTO note VALUES (1)",),
        to="-2",
        expect=loses(
            {"public.note": 1},
            verdict={"r3": "reversible_with_loss", "r2": "reversible"},
            gone_after=("note", "customer.phone"),
        ),
    ),
    Case(
        name="empty_revision",
        about="A revision that does nothing changes nothing but the stamp.",
        revisions=(CUSTOMER, Revision("r2")),
        rows=(THREE,),
        expect=works(there_after=("customer",)),
    ),
)
