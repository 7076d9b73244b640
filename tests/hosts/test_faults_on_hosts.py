"""Hosts that lose their link or power, and the pages' commands, on a cluster of hosts: minutes a test.

The tests run in their order: each uses what those before left on the cluster.
"""

import io
import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from tests.hosts.cluster import BUCKET, ZPOINT, Cluster, make_cluster, wait_until
from tests.hosts.machines import REPO, missing_requirement

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement()),
]
DATA = f"data.uri={BUCKET}/faces"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with make_cluster(tmp_path_factory.mktemp("hosts"), {"w1": 1, "w2": 1}) as cluster:
        argv = ("ingest", "generated", "--to", f"{BUCKET}/faces", "--size", 16, "--limit", 300, "--shard-rows", 64)
        cluster.submit(*argv)
        yield cluster


def jobs(cluster: Cluster) -> list[dict]:
    return json.loads(cluster.zpoint("jobs", "--json").stdout)["jobs"]


def test_a_training_beside_the_endpoint_names_what_it_waits_for_and_the_link_of_the_laptop_may_break(cluster: Cluster):
    cluster.submit("train", "tiny.yaml", DATA, "scale.workers=2", "name=two")
    cluster.submit("promote", "two")
    assert cluster.zpoint("deploy", "--no-compile").returncode == 0
    waiting, log = cluster.start_job("train", "tiny.yaml", DATA, "scale.workers=2", "name=waits", log="waits")
    wait_until(lambda: "held now: endpoint zpoint 1 CPU" in log.read_text(), "the line of the wait")
    laptop = cluster.hosts["laptop"]
    laptop.unplug()
    wait_until(lambda: "lost the connection to" in log.read_text(), "the lost connection")
    laptop.plug()
    wait_until(lambda: "connected again; job" in log.read_text(), "the new connection")
    assert json.loads(cluster.zpoint("stop", jobs(cluster)[0]["id"], "--json").stdout)["status"] == "STOPPED"
    assert waiting.wait(60) == 1
    assert "waiting for resources" in cluster.zpoint("logs", jobs(cluster)[0]["id"]).stdout
    assert cluster.zpoint("deploy", "delete").returncode == 0


def test_a_worker_that_crashes_leaves_its_last_lines_in_the_job_s_log(cluster: Cluster):
    argv = ("train", "tiny.yaml", DATA, "scale.workers=2", "name=crash", "optim.epochs=400", "scale.max_failures=0")
    training, log = cluster.start_job(*argv, log="crash")
    wait_until(lambda: "crash: " in log.read_text(), "the first steps")
    cluster.hosts["w2"].run("pkill", "-SEGV", "-f", "ray::RayTrainWorker")  # in the host's own process namespace
    assert training.wait(120) == 1
    assert "Fatal Python error: Segmentation fault" in log.read_text()
    assert "Fatal Python error" in cluster.zpoint("logs", jobs(cluster)[0]["id"]).stdout


def test_a_host_without_the_store_is_named_and_left_out(cluster: Cluster):
    w2, store = cluster.hosts["w2"], cluster.hosts["store"].address
    w2.run("ip", "route", "add", "blackhole", store)
    process = cluster.zpoint("doctor", "--cluster")
    assert process.returncode == 1
    assert re.search(r"BROKEN store +w2: no access", process.stdout)
    assert max(map(len, process.stdout.splitlines())) <= 80
    _, log = cluster.submit("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=without")
    assert "on host w2: " in log
    assert "the training goes on without this node" in log
    w2.run("ip", "route", "del", "blackhole", store)


def test_a_killed_campaign_is_no_longer_running(cluster: Cluster):
    campaign, log = cluster.start_job("tune", "tiny.yaml", DATA, "name=killed", "optim.epochs=400", log="killed")
    wait_until(lambda: "killed: 1" in log.read_text(), "the first epochs")
    assert "campaign killed: running" in cluster.zpoint("campaign", "killed").stdout
    cluster.hosts["head"].run("pkill", "-KILL", "-f", "jobs.cli tune")
    assert campaign.wait(120) == 1
    wait_until(lambda: "campaign killed: unfinished" in cluster.zpoint("campaign", "killed").stdout, "the lease's end")
    assert re.search(r"(?m)^killed +killed ", cluster.zpoint("runs").stdout)


def test_an_elastic_training_survives_the_power_cut_of_a_host(cluster: Cluster):
    argv = ("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=cut", "optim.epochs=150")
    training, log = cluster.start_job(*argv, log="cut")
    wait_until(lambda: "cut: " in log.read_text(), "the first steps")
    cluster.hosts["w2"].power_off()
    assert training.wait(240) == 0, log.read_text()
    cluster.hosts["w2"].boot()
    cluster.start_worker("w2")
    wait_until(lambda: cluster.nodes() == {"head", "w1", "w2"}, "the node")


def test_a_job_goes_on_after_a_power_cut_of_the_head(cluster: Cluster):
    """The head knows no job after it: the waiting `submit` sends the job again, and the run resumes."""
    argv = ("train", "tiny.yaml", DATA, "scale.workers=1", "name=headless", "optim.epochs=300")
    training, log = cluster.start_job(*argv, log="headless")
    wait_until(lambda: re.search(r"headless: .* epoch [1-9]\d", log.read_text()), "the tenth epoch")
    head = cluster.hosts["head"]
    head.power_off()
    wait_until(lambda: "lost the connection to" in log.read_text(), "the lost connection")
    head.boot()
    cluster.start_head()
    assert training.wait(300) == 0, log.read_text()
    assert "goes on as train-" in log.read_text()
    first, second = re.split("goes on as train-", log.read_text())
    epochs = [int(number) for number in re.findall(r"epoch (\d+)/300", second)]
    assert min(epochs) >= max(map(int, re.findall(r"epoch (\d+)/300", first))) - 1


def test_each_command_of_the_celeba_page_works(cluster: Cluster):
    """At a small size: drawn faces, a small network, one worker a training."""
    script = page_commands(REPO / "docs" / "celeba.md")
    assert [words[0] for words in script if words[0] != "zpoint"] == ["aws"]
    upload_celeba(cluster)
    small = ["scale.workers=1", "model.channels=[4,4,4,4]", "model.z_dim=4", "optim.epochs=2", "optim.batch=16"]
    runs: dict[str, str] = {}
    for words in script[1:]:
        command = [runs.get(word, word.replace("s3://bucket", BUCKET)) for word in words[1:]]
        match command:
            case ["submit", "ingest", *_]:
                result, _ = cluster.submit(*command[1:-1], "--size", 32)
                assert result["counts"] == {"train": 80, "valid": 20, "test": 70}
            case ["submit", "train", recipe, uri, *_]:
                result, _ = cluster.submit("train", recipe, uri, *small)
                runs |= {word: result["run"] for line in script for word in line if word.startswith(f"{recipe}-")
                         and "search" not in word}  # fmt: skip
            case ["submit", "tune", recipe, uri, *_]:
                result, _ = cluster.submit("tune", recipe, uri, *small, "search.trials=2")
                runs |= {word: result["campaign"] for line in script for word in line if "-search-" in word}
            case ["submit", "promote", *_]:
                cluster.submit(*command[1:])
            case ["logs", _, *options]:
                assert cluster.zpoint("logs", jobs(cluster)[0]["id"], *options).returncode == 0
            case _:
                process = cluster.zpoint(*adapt(cluster, command))
                assert process.returncode == 0, (command, process.stderr)
    assert cluster.zpoint("deploy", "delete").returncode == 0


def adapt(cluster: Cluster, command: list[str]) -> list[str]:
    """Return a command of the page with fewer images, at the endpoint's address on these hosts."""
    extra = ["--num-samples", "16", "--limit", "64"] if command[0] == "study" else []
    return [word.replace("127.0.0.1:8000", f"{cluster.hosts['head'].address}:8000") for word in command] + extra


def page_commands(page: Path) -> list[list[str]]:
    """Return the words of each command of a page, without `export`."""
    lines = re.findall(r"(?m)^    ((?:zpoint|aws) .*)$", page.read_text())
    return [shlex.split(line) for line in lines]


def upload_celeba(cluster: Cluster) -> None:
    """Put a small set in the form of CelebA's official one to the bucket, as the page's `aws s3 cp` does."""
    names, archive = [f"{i:06d}.jpg" for i in range(1, 171)], io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for i, name in enumerate(names):
            face = draw_face(0, i, 32)[0]
            file.writestr(f"img_align_celeba/{name}", encode_image(face, "jpeg"))
    split = ["0"] * 80 + ["1"] * 20 + ["2"] * 70
    files = {
        "img_align_celeba.zip": archive.getvalue(),
        "list_eval_partition.txt": "\n".join(f"{name} {s}" for name, s in zip(names, split, strict=True)).encode(),
        "identity_CelebA.txt": "\n".join(f"{name} {i}" for i, name in enumerate(names)).encode(),
        "list_attr_celeba.txt": (
            f"{len(names)}\nSmiling Young \n" + "\n".join(f"{name} -1  1" for name in names)
        ).encode(),
    }
    folder = cluster.hosts["laptop"].folder / "tmp" / "home" / "celeba"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    code = (
        "import boto3, pathlib; c = boto3.client('s3'); "
        "[c.upload_file(str(p), 'zpoint', f'celeba/{p.name}') for p in pathlib.Path('celeba').iterdir()]"
    )
    process = cluster.hosts["laptop"].run(ZPOINT[0], "-c", code, env=cluster.env)
    assert process.returncode == 0, process.stderr
