"""Templates of PromQL are filled in without being able to say anything else, and selectors are found in what comes out."""

import pytest

from rollbackd.core.promql import PLACEHOLDERS, fill_in, freshness, selectors, template_faults

VALUES = {
    "target": "shop-db",
    "service": "shop",
    "environment": "production",
    "version": "2.0",
    "previous_version": "1.0",
}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ('up{service="$service"}', 'up{service="shop"}'),
        ('up{service="${service}"}', 'up{service="shop"}'),
        ("up{service='$service'}", "up{service='shop'}"),
        ('up{db="${target}-$environment"}', 'up{db="shop-db-production"}'),
        # The longer name is meant, and PromQL's own braces are left alone.
        ('sum by (le) (x{v!="$previous_version"})', 'sum by (le) (x{v!="1.0"})'),
        # A regular expression: the dot of the version is a dot.
        ('up{v=~"$version"}', r'up{v=~"2\x5c.0"}'),
        ('up{v !~ "x|${version}$"}', r'up{v !~ "x|2\x5c.0$"}'),
        # A dollar that is one.
        ('up{v=~"a$|b$$"}', 'up{v=~"a$|b$"}'),
        ('up{v="$$service"}', 'up{v="$service"}'),
        ("vector(1) # $$ as ${it} is", "vector(1) # $ as ${it} is"),
    ],
)
def test_a_template_is_filled_in(template: str, filled: str) -> None:
    assert fill_in(template, VALUES) == filled


@pytest.mark.parametrize(
    "value", ['"} or vector(9) or x{a="', "'}", "\\", '\\"', "a\nb", "`", "$version", "${nonsense}", "é{}"]
)
def test_no_value_ends_its_string(value: str) -> None:
    """What comes out is one selector with one string, whatever a version is called."""
    for quote in "\"'":
        filled = fill_in(f"up{{v={quote}$version{quote}}}", {**VALUES, "version": value})
        assert selectors(filled) == (filled,)
        inner = filled[6:-2]
        assert quote not in inner
        assert "\n" not in inner
        # PromQL unquotes as Go and Python do here.
        assert inner.encode("latin-1", "backslashreplace").decode("unicode_escape") == value


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("  ", "is empty"),
        ('up{a="$svc"}', "$svc is no placeholder; there are $target, $service,"),
        ('up{a="${service }"}', "${service } is no placeholder"),
        ('up{a="${}"}', "${} is no placeholder"),
        ("up{a=$service}", "$service must stand in quotes"),
        ("rate(up[$version])", "$version must stand in quotes"),
        ("up{a=`$service`}", "in backquotes, where nothing can be escaped"),
        ('up{a="$service}', "a string that begins with \" doesn't end"),
    ],
)
def test_a_template_that_can_not_be_filled_in_says_why(template: str, said: str) -> None:
    assert any(said in fault for fault in template_faults(template)), template_faults(template)


def test_a_good_template_has_no_faults() -> None:
    for name in PLACEHOLDERS:
        assert (
            template_faults(f'sum(rate(up{{a="${name}", b=\'${{{name}}}\', c=~"x$"}}[5m])) # it\'s $$5') == []
        )


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("up", ("up",)),
        ('{__name__="up"}', ('{__name__="up"}',)),
        ("1 + 2 * time()", ()),
        ("vector(0)", ()),
        ('sum by (le, job) (rate(x_bucket{a="}b{"}[5m]))', ('x_bucket{a="}b{"}',)),
        ("sum(rate(a:b[1m] offset 5m)) without (c)", ("a:b",)),
        ("a / on (job) group_left (b) c", ("a", "c")),
        ("a and b or c unless d == bool 1", ("a", "b", "c", "d")),
        ("x{ a = '1' } > x{a='1'}", ("x{ a = '1' }", "x{a='1'}")),
        ("a + a", ("a",)),
        ("max_over_time(rate(x[1m])[5m:10s]) @ end()", ("x",)),
        ("histogram_quantile(0.95, sum by (le) (y)) > inf # and z", ("y",)),
    ],
)
def test_the_selectors_of_a_query_are_found(query: str, found: tuple[str, ...]) -> None:
    assert selectors(query) == found


def test_the_newest_sample_of_the_stalest_selector_is_asked_for() -> None:
    assert freshness("vector(1)") == ""
    assert freshness("sum(rate(a[1m]))") == "max(timestamp(a))"
    assert freshness("a / b") == (
        'min(label_replace(max(timestamp(a)), "of", "0", "", "") or label_replace(max(timestamp(b)), "of", "1", "", ""))'
    )
