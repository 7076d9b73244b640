"""Hosts that lose their link or power, and the pages' commands, on a cluster of hosts: minutes a test.

The tests run in their order: each uses what those before left on the cluster.
"""

import io
import json
import re
import shlex
import time
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from aecore.training.checkpoint import MAX_BACKLOG
from tests.hosts.cluster import (
    BUCKET,
    END_S,
    ZPOINT,
    Cluster,
    make_cluster,
    shown_epochs,
    train_workers,
    wait_for_epoch,
    wait_until,
    worker_processes,
)
from tests.hosts.machines import REPO, missing_requirement

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_requirement()), reason=missing_requirement()),
]
DATA = f"data.uri={BUCKET}/faces"
PAGE = REPO / "docs" / "celeba.md"
SMALL = ["scale.workers=1", "model.channels=[4,4,4,4]", "model.z_dim=4"]
SMALL += ["optim.epochs=4", "optim.batch=16", "optim.lr=0.01"]
# So few steps make units active only at a small KL factor.
SMALL_SEARCH = [*SMALL, "search.trials=2", "search.stop=none", "search.space.loss.kl_factor=[0.000001,0.0001]"]


def page_sections(page: Path) -> list[str]:
    """Return the titles of a page's sections."""
    return re.findall(r"(?m)^## (.*)$", page.read_text())


def page_commands(page: Path, section: str = "") -> list[list[str]]:
    """Return the words of each command of a page, or of one of its sections, without `export`."""
    text = page.read_text().partition(f"## {section}\n")[2].partition("\n## ")[0] if section else page.read_text()
    return [shlex.split(line) for line in re.findall(r"(?m)^    ((?:zpoint|aws) .*)$", text)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with make_cluster(tmp_path_factory.mktemp("hosts"), {"w1": 1, "w2": 1}) as cluster:
        argv = ("ingest", "generated", "--to", f"{BUCKET}/faces", "--size", 16, "--limit", 300, "--shard-rows", 64)
        cluster.submit(*argv)
        yield cluster


@pytest.fixture(scope="module")
def champion(cluster: Cluster) -> None:
    """Train a run and promote it."""
    cluster.submit("train", "tiny.yaml", DATA, "name=champion")
    cluster.submit("promote", "champion")


def jobs(cluster: Cluster) -> list[dict]:
    return json.loads(cluster.zpoint("jobs", "--json").stdout)["jobs"]


def cut_link(cluster: Cluster, host: str, seconds: float) -> None:
    """Cut the link of a worker's host for `seconds`, then wait until it is a node again."""
    cluster.hosts[host].unplug()
    time.sleep(seconds)
    plug(cluster, host)


def plug(cluster: Cluster, host: str) -> None:
    cluster.hosts[host].plug()
    wait_until(lambda: cluster.nodes() == {"head", "w1", "w2"}, "the link back: the node")


def power_on(cluster: Cluster, worker: str) -> None:
    """Boot a worker's host and wait until it is a node again."""
    cluster.hosts[worker].boot()
    cluster.start_worker(worker)
    wait_until(lambda: cluster.nodes() == {"head", "w1", "w2"}, "the node")


def digest(cluster: Cluster, run: str) -> str:
    """Return the SHA-256 of the weights of a finished run."""
    code = (
        "import boto3, hashlib, sys; s3 = boto3.client('s3');"
        "body = s3.get_object(Bucket='zpoint', Key=f'store/runs/{sys.argv[1]}/model/model.safetensors')['Body'];"
        "print(hashlib.sha256(body.read()).hexdigest())"
    )
    process = cluster.hosts["laptop"].run(ZPOINT[0], "-c", code, run, env=cluster.env)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.usefixtures("champion")
def test_a_training_beside_the_endpoint_names_what_it_waits_for_and_the_link_of_the_laptop_may_break(cluster: Cluster):
    assert cluster.zpoint("deploy").returncode == 0
    waiting, log = cluster.start_job("train", "tiny.yaml", DATA, "scale.workers=2", "name=waits", log="waits")
    wait_until(lambda: "held now: endpoint zpoint 1 CPU" in log.read_text(), "the line of the wait")
    laptop = cluster.hosts["laptop"]
    laptop.unplug()
    wait_until(lambda: "lost the connection to" in log.read_text(), "laptop's link cut: noticed")
    laptop.plug()
    wait_until(lambda: "connected again; job" in log.read_text(), "laptop's link back: connected again")
    assert json.loads(cluster.zpoint("stop", jobs(cluster)[0]["id"], "--json").stdout)["status"] == "STOPPED"
    assert waiting.wait(60) == 1
    assert "waiting for resources" in cluster.zpoint("logs", jobs(cluster)[0]["id"]).stdout


@pytest.mark.usefixtures("champion")
def test_the_endpoint_moves_from_a_host_that_loses_power(cluster: Cluster):
    """Its only replica starts again on the other host; the head's HAProxy then leads there."""
    assert cluster.zpoint("deploy").returncode == 0
    sample = ("sample", "--url", f"http://{cluster.hosts['head'].address}:8000", "--n", 1)
    assert cluster.zpoint(*sample).returncode == 0
    [lost] = worker_processes(cluster, "ray::ServeReplica")
    cluster.hosts[lost].power_off()
    wait_until(lambda: cluster.zpoint(*sample).returncode == 0, "the replica's host off: answers again", interval_s=0)
    cluster.hosts[lost].boot()
    cluster.start_worker(lost)
    assert cluster.zpoint("deploy", "delete").returncode == 0
    wait_until(lambda: cluster.nodes() == {"head", "w1", "w2"}, "the node")


def test_a_worker_that_crashes_leaves_its_last_lines_in_the_job_s_log(cluster: Cluster):
    argv = ("train", "tiny.yaml", DATA, "scale.workers=2", "name=crash", "optim.epochs=400", "scale.max_failures=0")
    training, log = cluster.start_job(*argv, log="crash")
    wait_until(lambda: "crash: " in log.read_text(), "the first steps")
    cluster.hosts["w2"].run("pkill", "-SEGV", "-f", "ray::RayTrainWorker")  # in the host's own process namespace
    wait_until(lambda: training.poll() is not None, "a worker crashed: the job has ended", timeout_s=120)
    assert training.returncode == 1
    assert "Fatal Python error: Segmentation fault" in log.read_text()
    assert "Fatal Python error" in cluster.zpoint("logs", jobs(cluster)[0]["id"]).stdout


def test_a_host_without_the_store_is_named_and_left_out(cluster: Cluster):
    w2, store = cluster.hosts["w2"], cluster.hosts["store"].address
    w2.run("ip", "route", "add", "blackhole", store)
    process = cluster.zpoint("doctor", "--cluster")
    assert process.returncode == 1
    assert re.search(r"BROKEN store +w2: no access", process.stdout)
    assert max(map(len, process.stdout.splitlines())) <= 80
    _, log = cluster.submit("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=without", "optim.epochs=1")
    assert "on host w2: " in log
    assert "the training goes on without this node" in log
    w2.run("ip", "route", "del", "blackhole", store)


def test_an_elastic_training_survives_a_short_cut_of_a_link_and_the_power_cut_of_a_host(cluster: Cluster):
    argv = ("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=cut", "optim.epochs=300")
    training, log = cluster.start_job(*argv, log="cut")
    w2 = cluster.hosts["w2"]
    wait_for_epoch(log, "", 300, "the first steps")
    workers = train_workers(cluster)
    assert set(workers) == {"w1", "w2"}
    w2.unplug()
    time.sleep(3)  # less than the 5 s after which these hosts' Ray counts a node as lost
    w2.plug()
    wait_for_epoch(log, log.read_text(), 300, "a link cut for 3 s: progress again")
    assert train_workers(cluster) == workers
    w2.power_off()
    off = log.read_text()
    wait_for_epoch(log, off, 300, "a host off: progress again")
    assert training.wait(END_S) == 0, log.read_text()
    assert shown_epochs(log.read_text()[len(off) :], 300)[0] >= shown_epochs(off, 300)[-1] - 1
    power_on(cluster, "w2")


def test_an_elastic_training_survives_a_link_that_is_cut_for_a_minute(cluster: Cluster):
    """Ray counts the host as lost after 5 s; its processes live on behind the cut, and must end once it is back."""
    argv = ("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=minute", "optim.epochs=700")
    training, log = cluster.start_job(*argv, log="minute")
    w2 = cluster.hosts["w2"]
    wait_for_epoch(log, "", 700, "the first steps")
    wait_until(lambda: set(train_workers(cluster)) == {"w1", "w2"}, "a worker on each host")
    w2.unplug()
    cut_at, cut = time.monotonic(), log.read_text()
    wait_for_epoch(log, cut, 700, "a link cut: progress again")
    time.sleep(max(0.0, cut_at + 60 - time.monotonic()))
    plug(cluster, "w2")
    assert training.wait(END_S) == 0, log.read_text()
    shown = shown_epochs(log.read_text(), 700)
    assert shown[-1] == 700
    print(f"epochs begun again: {(again := max(before - after for before, after in pairwise(shown)))}")
    assert again <= 2 * MAX_BACKLOG  # those that had not been written, and those until the first line of progress
    wait_until(lambda: not train_workers(cluster), "no worker is left")


def test_a_training_ends_while_a_link_stays_cut(cluster: Cluster):
    """The worker behind the cut waits in a collective until Ray on its host gives the head up, or hears it again."""
    argv = ("train", "tiny.yaml", DATA, "scale.workers=[1,2]", "name=for-good", "optim.epochs=300")
    training, log = cluster.start_job(*argv, log="for-good")
    w2 = cluster.hosts["w2"]
    wait_for_epoch(log, "", 300, "the first steps")
    wait_until(lambda: set(train_workers(cluster)) == {"w1", "w2"}, "a worker on each host")
    w2.unplug()
    cut = log.read_text()
    wait_for_epoch(log, cut, 300, "a link cut: progress again")
    assert training.wait(END_S) == 0, log.read_text()
    plug(cluster, "w2")
    wait_until(lambda: not train_workers(cluster), "no worker is left")


def test_a_training_of_two_hosts_waits_for_a_lost_one_and_ends_bit_identical(cluster: Cluster):
    argv = ("train", "tiny.yaml", DATA, "scale.workers=2", "optim.epochs=100")
    cluster.submit(*argv, "name=calm")
    training, log = cluster.start_job(*argv, "name=stormy", log="stormy")
    w2 = cluster.hosts["w2"]
    wait_until(lambda: max(shown_epochs(log.read_text(), 100), default=0) >= 5, "the fifth epoch")
    w2.power_off()
    wait_until(lambda: "waiting for resources" in log.read_text(), "a host off: the wait is named")
    off = log.read_text()
    w2.boot()
    cluster.start_worker("w2")
    wait_for_epoch(log, off, 100, "the host on: progress again")
    assert training.wait(END_S) == 0, log.read_text()
    assert digest(cluster, "stormy") == digest(cluster, "calm")


def test_an_ingest_survives_the_power_cut_of_a_host(cluster: Cluster):
    argv = ("generated", "--to", f"{BUCKET}/cut", "--size", 64, "--limit", 12000, "--shard-rows", 128)
    ingest, log = cluster.start_job("ingest", *argv, log="ingest")
    wait_until(lambda: re.search(r"ingest: [1-9][\d,]*/12,000", log.read_text()), "the first shards")
    w2 = cluster.hosts["w2"]
    w2.power_off()
    off = log.read_text()
    wait_until(lambda: log.read_text().count("ingest: ") > off.count("ingest: "), "a host off: progress again")
    assert ingest.wait(END_S) == 0, log.read_text()
    verified = cluster.zpoint("data", "verify", f"{BUCKET}/cut")
    assert verified.returncode == 0, verified.stderr
    power_on(cluster, "w2")


@pytest.mark.parametrize("seconds", [5, 60])
def test_an_ingest_goes_on_through_a_cut_link(cluster: Cluster, seconds: int):
    """In 60 s the ingest ends without the host behind the cut."""
    to = f"{BUCKET}/cut-{seconds}"
    argv = ("generated", "--to", to, "--size", 64, "--limit", 12000, "--shard-rows", 128)
    ingest, log = cluster.start_job("ingest", *argv, log=f"ingest-{seconds}")
    wait_until(lambda: re.search(r"ingest: [1-9][\d,]*/12,000", log.read_text()), "the first shards")
    cut_link(cluster, "w2", seconds)
    assert ingest.wait(END_S) == 0, log.read_text()
    verified = cluster.zpoint("data", "verify", to)
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("seconds", [5, 60])
def test_a_campaign_goes_on_through_a_cut_link(cluster: Cluster, seconds: int):
    """Its two trials run on a host each."""
    argv = ("tune", "tiny.yaml", DATA, f"name=linked-{seconds}", "optim.epochs=200")
    campaign, log = cluster.start_job(*argv, log=f"tune-{seconds}")
    wait_until(lambda: re.search(r"linked-\d+: [1-9]\d+/400", log.read_text()), "the tenth epoch")
    cut_link(cluster, "w2", seconds)
    wait_until(lambda: campaign.poll() is not None, "the campaign has ended", timeout_s=300)
    assert campaign.returncode == 0, log.read_text()
    result = json.loads(log.read_text().splitlines()[-1])["result"]
    assert [trial["epoch"] for trial in result["trials"] if trial["state"] == "finished"] == [200, 200]


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize("seconds", [5, 60])
def test_the_endpoint_answers_again_after_a_cut_link(cluster: Cluster, seconds: int):
    """In 60 s its only replica starts again on the other host; none is left behind the cut."""
    assert cluster.zpoint("deploy").returncode == 0
    sample = ("sample", "--url", f"http://{cluster.hosts['head'].address}:8000", "--n", 1)
    assert cluster.zpoint(*sample).returncode == 0
    [host] = worker_processes(cluster, "ray::ServeReplica")
    began = time.monotonic()
    cluster.hosts[host].unplug()
    if seconds == 60:
        wait_until(lambda: cluster.zpoint(*sample).returncode == 0, "a link cut: answers again", interval_s=0)
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    plug(cluster, host)
    wait_until(lambda: cluster.zpoint(*sample).returncode == 0, f"the link back after {seconds} s: answers")
    wait_until(
        lambda: sum(len(pids.split()) for pids in worker_processes(cluster, "ray::ServeReplica").values()) == 1,
        "one replica",
    )
    assert cluster.zpoint("deploy", "delete").returncode == 0


def test_a_killed_campaign_is_no_longer_running(cluster: Cluster):
    campaign, log = cluster.start_job("tune", "tiny.yaml", DATA, "name=killed", "optim.epochs=400", log="killed")
    wait_until(lambda: re.search(r"killed: [1-9]", log.read_text()), "the first epochs")
    assert "campaign killed: running" in cluster.zpoint("campaign", "killed").stdout
    cluster.hosts["head"].run("pkill", "-KILL", "-f", "jobs.cli tune")
    assert campaign.wait(120) == 1
    wait_until(
        lambda: "campaign killed: unfinished" in cluster.zpoint("campaign", "killed").stdout,
        "a campaign's driver killed: shown as unfinished",
    )
    assert re.search(r"(?m)^killed +killed ", cluster.zpoint("runs").stdout)


def test_a_job_goes_on_after_a_power_cut_of_the_head(cluster: Cluster):
    """The head knows no job after it: the waiting `submit` sends the job again, and the run resumes."""
    argv = ("train", "tiny.yaml", DATA, "scale.workers=1", "name=headless", "optim.epochs=150")
    training, log = cluster.start_job(*argv, log="headless")
    wait_until(lambda: max(shown_epochs(log.read_text(), 150), default=0) >= 5, "the fifth epoch")
    head = cluster.hosts["head"]
    head.power_off()
    wait_until(lambda: "lost the connection to" in log.read_text(), "the head off: noticed")
    head.boot()
    cluster.start_head()
    wait_until(lambda: "goes on as train-" in log.read_text(), "the head on: submitted again")
    wait_until(
        lambda: shown_epochs(log.read_text().partition("goes on as train-")[2], 150), "the head on: progress again"
    )
    assert training.wait(END_S) == 0, log.read_text()
    first, second = re.split("goes on as train-", log.read_text())
    assert shown_epochs(second, 150)[0] >= shown_epochs(first, 150)[-1] - 1


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    """Return the names that the page's runs and its campaign have here, which the tests fill in."""
    return {}


@pytest.mark.parametrize("section", page_sections(PAGE))
def test_each_command_of_the_celeba_page_works(cluster: Cluster, names: dict[str, str], section: str):
    """At a small size: drawn faces, a small network, one worker a training."""
    script = page_commands(PAGE)

    def rename(pattern: str, name: str) -> None:
        names.update({word: name for line in script for word in line if re.fullmatch(pattern, word)})

    for program, *words in page_commands(PAGE, section):
        command = [names.get(word, word.replace("s3://bucket", BUCKET)) for word in words]
        match command:
            case ["s3", "cp", *_] if program == "aws":
                upload_celeba(cluster)
            case ["submit", "ingest", *_]:
                result, _ = cluster.submit(*command[1:-1], "--size", 32)
                assert result["counts"] == {"train": 80, "valid": 20, "test": 70}
            case ["submit", "train", recipe, uri, *_]:
                result, _ = cluster.submit("train", recipe, uri, *SMALL)
                rename(rf"{recipe}-[0-9a-f]{{8}}", result["run"])
            case ["submit", "tune", recipe, uri, *_]:
                result, _ = cluster.submit("tune", recipe, uri, *SMALL_SEARCH)
                rename(rf"{recipe}-search-[0-9a-f]{{8}}", result["campaign"])
            case ["submit", "promote", *_]:
                cluster.submit(*command[1:])
            case ["logs", _, *options]:
                assert cluster.zpoint("logs", jobs(cluster)[0]["id"], *options).returncode == 0
            case _:
                process = cluster.zpoint(*adapt(cluster, command))
                assert process.returncode == 0, (command, process.stderr)


def adapt(cluster: Cluster, command: list[str]) -> list[str]:
    """Return a command of the page with fewer images, at the endpoint's address on these hosts."""
    extra = ["--num-samples", "16", "--limit", "64"] if command[0] == "study" else []
    return [word.replace("127.0.0.1:8000", f"{cluster.hosts['head'].address}:8000") for word in command] + extra


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
