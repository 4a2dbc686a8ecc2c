"""The corpus: every case of every theme."""

from tests.corpus import (
    cases_code,
    cases_data,
    cases_environments,
    cases_graph,
    cases_objects,
    cases_transactions,
)
from tests.corpus.case import Case

CASES: tuple[Case, ...] = (
    *cases_graph.CASES,
    *cases_code.CASES,
    *cases_transactions.CASES,
    *cases_data.CASES,
    *cases_objects.CASES,
    *cases_environments.CASES,
)
