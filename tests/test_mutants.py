"""The list of planted faults does not rot: each still applies, and its tests exist. `make mutants` runs them."""

import ast
from pathlib import Path

import pytest

from tests.mutants import EQUIVALENT, PLANTED, generate, mutated_files, plant, select_tests
from tests.planted_faults import Fault

REPO = Path(__file__).parent.parent


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.change)
def test_planted_fault_still_applies(fault: Fault):
    ast.parse(plant(fault).text)
    assert fault.tests
    for test in fault.tests:
        path, _, function = test.partition("::")
        assert not function or f"def {function}(" in (REPO / path).read_text()
        assert (REPO / path).is_file()


def test_fault_whose_old_text_is_gone_is_refused():
    with pytest.raises(ValueError, match="0 times, not once: mend tests/planted_faults"):
        plant(Fault("none", "aecore/config.py", "no such text", "", ()))


def test_generated_mutants_change_one_expression_or_statement_each():
    file = "aecore/data/shuffle.py"
    source = (REPO / file).read_text()
    mutants = {mutant.change: mutant.text for mutant in generate(file)}
    line = "return np.arange(count) if limit >= count else np.arange(limit) * count // limit"
    assert f"limit >= count -> (limit > count) in {line}" in mutants
    changes = {change.partition(" in ")[0] for change in mutants}
    assert {"step * self.batch -> (step / self.batch)", "0 -> (1)"} <= changes
    assert "return np.array_split(np.arange(count), self.size)[self.rank] -> return None" in mutants
    for text in mutants.values():
        ast.parse(text)
        assert text != source
    assert select_tests(file) == ("tests/aecore/data/test_shuffle.py", "tests/aecore/data/test_loaders.py")


def test_each_module_that_is_mutated_has_tests():
    for file in mutated_files():
        for test in select_tests(file):
            assert (REPO / test).is_file(), f"no tests of {file}: name them in TESTS of tests/mutants.py"


def test_equivalent_mutants_exist():
    for file, change, reason in EQUIVALENT:
        assert reason
        assert change in {mutant.change for mutant in generate(file)}, f"{file}: {change}"
