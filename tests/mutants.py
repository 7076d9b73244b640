"""Plant faults in the code, one at a time, and count those that the quick tests notice: `make mutants`.

    make mutants                                         # all planted faults and 300 generated ones
    make mutants ARGS="--generated 0"                    # the planted faults alone
    make mutants ARGS="--only aecore/latent --seed 1"    # faults of some files, another sample

Planted faults are those of tests/planted_faults.py. A generated one changes one operator, constant, argument order or
statement; they are sampled from all such changes of GENERATED_FROM. Each fault gets a copy of the repository and a
process forked from this one, which has imported the libraries; it is noticed if one of its tests fails or hangs.
"""

import argparse
import ast
import copy
import multiprocessing as mp
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(REPO))

from tests.planted_faults import EQUIVALENT, PLANTED, Fault  # noqa: E402

GENERATED_FROM = (  # beside aecore: modules without Ray, MLflow or sockets
    "cluster/lock.py", "cluster/network.py", "cluster/settings.py", "cluster/signals.py", "cluster/storage.py",
    "jobs/claims/verdicts.py", "jobs/study/findings.py", "jobs/study/metrics.py", "jobs/train/stopping.py",
    "jobs/tune/campaign.py", "jobs/tune/plan.py", "jobs/tune/selection.py", "jobs/tune/stopping.py",
    "jobs/tune/table.py",
    "serving/http/decoding.py", "serving/http/encoding.py", "serving/http/operations.py", "serving/http/schemas.py",
    "serving/runtime/admission.py", "serving/runtime/batching.py", "serving/runtime/model_loading.py",
    "serving/runtime/model_slot.py",
)  # fmt: skip
NOT_GENERATED_FROM = (
    "aecore/data/synthetic_faces.py",  # a thousand lengths and colours of drawn faces: no value is the right one
    "aecore/metrics/inception.py",  # its tests need torch-fidelity
)
TESTS = {  # of a module whose tests are not only tests/.../test_MODULE.py
    "aecore/config.py": (
        "tests/aecore/test_config.py", "tests/aecore/test_search_space.py", "tests/aecore/test_recipe_ranges.py",
    ),
    "aecore/data/canvas.py": ("tests/aecore/data/test_canvas.py", "tests/aecore/data/test_synthetic_faces.py"),
    "aecore/data/dataset.py": ("tests/aecore/data/test_dataset.py", "tests/aecore/data/test_loaders.py"),
    "aecore/data/file_tree.py": ("tests/aecore/data/test_layout.py", "tests/aecore/data/test_sources.py"),
    "aecore/data/parquet.py": ("tests/aecore/data/test_tables.py",),
    "aecore/data/images.py": ("tests/aecore/data/test_images.py", "tests/aecore/data/test_odd_images.py"),
    "aecore/data/io.py": (
        "tests/aecore/data/test_io.py", "tests/aecore/data/test_shards.py", "tests/aecore/data/test_download.py",
    ),
    "aecore/data/node_cache.py": ("tests/aecore/data/test_node_cache.py", "tests/aecore/data/test_cache_eviction.py"),
    "aecore/data/image_input.py": ("tests/aecore/data/test_image_input.py", "tests/aecore/test_pretrained.py"),
    "aecore/data/readers.py": (
        "tests/aecore/data/test_sources.py", "tests/aecore/data/test_layout.py", "tests/aecore/data/test_tables.py",
    ),
    "aecore/data/sources.py": (
        "tests/aecore/data/test_sources.py", "tests/aecore/data/test_layout.py", "tests/aecore/data/test_tables.py",
        "tests/aecore/data/test_celeba.py",
    ),
    "aecore/data/remote_path.py": ("tests/aecore/data/test_remote_path.py", "tests/aecore/data/test_sources.py"),
    "aecore/data/shuffle.py": ("tests/aecore/data/test_shuffle.py", "tests/aecore/data/test_loaders.py"),
    "aecore/latent/arrays.py": ("tests/aecore/test_pretrained.py", "tests/serving/client/test_client.py"),
    "aecore/latent/density.py": ("tests/aecore/latent/test_samplers.py",),
    "aecore/metrics/distribution.py": ("tests/aecore/metrics/test_distribution.py",),
    "aecore/metrics/face_detector.py": ("tests/aecore/metrics/test_suite.py", "tests/aecore/metrics/test_faces.py"),
    "jobs/claims/verdicts.py": ("tests/jobs/claims/test_verdicts.py",),
    "jobs/study/metrics.py": ("tests/jobs/study/test_findings.py",),
    "jobs/tune/campaign.py": (
        "tests/jobs/tune/test_runner.py", "tests/jobs/tune/test_table.py", "tests/jobs/tune/test_lookup.py",
    ),
    "jobs/tune/stopping.py": ("tests/jobs/tune/test_stopping.py", "tests/jobs/tune/test_runner.py"),
    "serving/http/decoding.py": (
        "tests/serving/http/test_decoding.py", "tests/serving/http/test_api.py",
        "tests/serving/http/test_api_images.py",
    ),
    "serving/http/operations.py": ("tests/serving/http/test_api.py", "tests/serving/http/test_api_images.py"),
    "serving/http/schemas.py": ("tests/serving/http/test_api.py", "tests/serving/http/test_request_forms.py"),
    "serving/runtime/admission.py": (
        "tests/serving/runtime/test_batching.py", "tests/serving/runtime/test_face_finder.py",
    ),
    "serving/runtime/model_slot.py": ("tests/serving/http/test_api.py",),
}  # fmt: skip
LIBRARIES = (  # imported once, before the forks; not Ray and MLflow, which read variables that the tests set
    "cv2", "fastapi.testclient", "hypothesis", "matplotlib.pyplot", "pyarrow.parquet", "pytest",
    "safetensors.torch", "scipy.stats", "simplejpeg", "sklearn.mixture", "torch.nn.parallel", "torchvision", "yaml",
)  # fmt: skip
PACKAGES = ("aecore", "cluster", "jobs", "serving", "tests")
COPIED = (*PACKAGES, "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile")
NO_TESTS_FAILED, INTERNAL_ERROR, USAGE_ERROR, NO_TESTS = 0, 3, 4, 5  # of pytest's exit statuses
CPU_LIMIT_S = 180  # of each process: a fault may loop without end
HANG_S = 1200  # a fault may wait without end; not less, since a busy machine is slow

SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip
# Functions whose first two arguments may change places.
SYMMETRIC = (
    "max",
    "min",
    "samestat",
    "rates_differ",
    "ssim",
    "mean_squared_error",
    "_psnr",
)


@dataclass(frozen=True)
class Mutant:
    """A module with one fault: its whole `text`, and the tests that are to notice it."""

    file: str
    change: str
    text: str
    tests: tuple[str, ...]


def plant(fault: Fault) -> Mutant:
    """Return the mutant of a planted fault. Raises ValueError unless its old text is in the file exactly once."""
    source = (REPO / fault.file).read_text()
    if (count := source.count(fault.old)) != 1:
        raise ValueError(f"{fault.file} holds {fault.old!r} {count} times, not once: mend tests/planted_faults.py")
    return Mutant(fault.file, fault.change, source.replace(fault.old, fault.new), fault.tests)


def generate(file: str) -> Iterator[Mutant]:
    """Yield a mutant for each change of one operator, constant, argument order or statement of a module."""
    source = (REPO / file).read_bytes()
    line_starts = [0]
    for line in source.splitlines(keepends=True):
        line_starts.append(line_starts[-1] + len(line))
    for node, new in _changes(ast.parse(source)):
        start = line_starts[node.lineno - 1] + node.col_offset
        end = line_starts[node.end_lineno - 1] + node.end_col_offset
        old, line = (
            " ".join(code.decode().split()) for code in (source[start:end], source.splitlines()[node.lineno - 1])
        )
        change = f"{old} -> {' '.join(new.split())}" + (f" in {line}" if old in line and old != line else "")
        text = (source[:start] + new.encode() + source[end:]).decode()
        yield Mutant(file, change, text, select_tests(file))


def _changes(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield nodes below `node` with the text that replaces them; none in annotations, f-strings and messages."""
    yield from ((node, f"({ast.unparse(new)})") for new in _changed_expressions(node))
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name("log")))):
            return
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield node, "return None"
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        return
    for name, child in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "slice" if isinstance(node, ast.AnnAssign) else ""):
            for item in child if isinstance(child, list) else [child]:
                if isinstance(item, ast.AST):
                    yield from _changes(item)


def _changed_expressions(node: ast.AST) -> Iterator[ast.expr]:
    new: Any = copy.copy(node)
    match node:
        case ast.Compare(ops=[operator]):
            new.ops = [SWAPPED[type(operator)]()]
            yield new
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in SWAPPED:
            new.op = SWAPPED[type(operator)]()
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as flag):
            yield ast.Constant(not flag)
        case ast.Constant(value=int() | float() as number):
            yield ast.Constant(number + 1)
        case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if name in SYMMETRIC:
            pass
        case ast.Call(args=[first, second, *rest]) if not any(isinstance(a, ast.Starred) for a in node.args):
            new.args = [second, first, *rest]
            yield new


def select_tests(file: str) -> tuple[str, ...]:
    """Return the test files of a module: those of TESTS, else the one of its name."""
    path = Path(file)
    return TESTS.get(file, (f"tests/{path.parent}/test_{path.stem}.py",))


def mutated_files() -> list[str]:
    """Return the modules that mutants are generated from."""
    aecore = [
        path.relative_to(REPO).as_posix() for path in (REPO / "aecore").rglob("*.py") if path.name != "__init__.py"
    ]
    return sorted({*aecore, *GENERATED_FROM} - {*NOT_GENERATED_FROM})


def sample_generated(count: int, seed: int, only: str) -> tuple[list[Mutant], int]:
    """Return `count` generated mutants in the proportions of the files, and how many there are; none is equivalent."""
    equivalent = {(file, change) for file, change, _ in EQUIVALENT}
    mutants = [
        m for file in mutated_files() if only in file for m in generate(file) if (file, m.change) not in equivalent
    ]
    return random.Random(seed).sample(mutants, min(count, len(mutants))), len(mutants)


def run_tests(mutant: Mutant | None, tests: tuple[str, ...], folder: str) -> None:
    """Run tests in a copy of the repository, with the mutant if there is one, and exit with pytest's status."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    root = Path(folder) / "zpoint"
    root.mkdir()
    for name in COPIED:
        source = REPO / name
        shutil.copytree(source, root / name) if source.is_dir() else shutil.copy2(source, root / name)
    if mutant:
        (root / mutant.file).write_text(mutant.text)
    with open(f"{folder}/output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    os.chdir(root)
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = str(root)
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not ray and not real and not browser"]
    status = pytest.main([*options, f"--basetemp={folder}/temp", *tests])
    sys.stdout.flush()
    os._exit(int(status))


@dataclass(frozen=True)
class Outcome:
    """`status`: pytest's exit status; negative: the signal that ended it, of the CPU limit too; None: it hung."""

    status: int | None
    seconds: float
    output: str

    @property
    def noticed(self) -> bool:
        return self.status != NO_TESTS_FAILED

    @property
    def failed_test(self) -> str:
        """Return the test that failed, or the file that cannot be imported; "" if there is none."""
        failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", self.output, re.MULTILINE)
        return failed[1] if failed else ""


def run_all(jobs: list[tuple[Mutant | None, tuple[str, ...]]], processes: int) -> Iterator[tuple[int, Outcome]]:
    """Run the tests of each job, `processes` jobs at a time; yield its index and outcome."""
    fork, queue, running = mp.get_context("fork"), list(enumerate(jobs)), {}
    try:
        while queue or running:
            while queue and len(running) < processes:
                index, (mutant, tests) = queue.pop(0)
                folder = tempfile.mkdtemp(prefix="mutant-")
                process = fork.Process(target=run_tests, args=(mutant, tests, folder))
                process.start()
                running[process.sentinel] = (index, process, folder, time.monotonic())
            wait(list(running), timeout=1)
            for sentinel, (index, process, folder, start) in list(running.items()):
                seconds, status = time.monotonic() - start, process.exitcode
                if status is None and seconds < HANG_S:
                    continue
                output = Path(folder, "output")
                yield index, Outcome(status, seconds, output.read_text(errors="replace") if output.exists() else "")
                _clean_up(process, folder)
                del running[sentinel]
    finally:
        for _, process, folder, _ in running.values():
            _clean_up(process, folder)


def _clean_up(process: Any, folder: str) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the tests' own processes too
    process.join()
    shutil.rmtree(folder, ignore_errors=True)


def run_mutants(kind: str, mutants: list[Mutant], processes: int) -> None:
    """Run the mutants of one kind; print a line for each, then how many were noticed by package.

    Exits if one of the tests that failed also fails without a fault.
    """
    noticed_by_file: list[tuple[str, bool]] = []
    survivors, failed_tests = [], set()
    for index, outcome in run_all([(mutant, mutant.tests) for mutant in mutants], processes):
        mutant = mutants[index]
        if outcome.status in (INTERNAL_ERROR, USAGE_ERROR, NO_TESTS):
            sys.exit(f"{outcome.output}\npytest cannot run {' '.join(mutant.tests)}: status {outcome.status}")
        failed_tests |= {outcome.failed_test} - {""}
        noticed_by_file.append((mutant.file, outcome.noticed))
        description = f"{mutant.file}: {mutant.change}"
        verdict = f"noticed: {outcome.failed_test or f'status {outcome.status}'}" if outcome.noticed else "SURVIVED"
        survivors += [] if outcome.noticed else [description]
        print(f"{len(noticed_by_file)}/{len(mutants)} {outcome.seconds:.0f} s {description}  {verdict}", flush=True)
    for _, outcome in run_all([(None, tuple(sorted(failed_tests)))] if failed_tests else [], processes):
        if outcome.noticed:
            sys.exit(f"{outcome.output}\na test fails without a fault too: {outcome.failed_test or outcome.status}")
    print(f"\n| {kind} faults | noticed | of | share |\n|---|---:|---:|---:|")
    for package in (*PACKAGES, ""):
        noticed = [is_noticed for file, is_noticed in noticed_by_file if file.startswith(package)]
        if noticed:
            print(f"| {package or 'all'} | {sum(noticed)} | {len(noticed)} | {sum(noticed) / len(noticed):.0%} |")
    print(*(f"survived: {survivor}" for survivor in survivors), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=int, default=300, help="number of generated mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of generated mutants")
    parser.add_argument("--only", default="", help="part of the path of the files to mutate")
    parser.add_argument("--no-planted", action="store_true", help="leave the planted faults out")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="mutants to test at the same time")
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    for name in LIBRARIES:
        import_module(name)
    planted = [] if options.no_planted else [plant(fault) for fault in PLANTED if options.only in fault.file]
    if planted:
        run_mutants("planted", planted, options.processes)
    generated, count = sample_generated(options.generated, options.seed, options.only)
    if generated:
        print(f"{len(generated)} of {count} generated mutants, seed {options.seed}")
        run_mutants("generated", generated, options.processes)


if __name__ == "__main__":
    main()
