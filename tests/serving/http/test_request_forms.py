"""The forms in which HTTP clients send one request: options, content types, encodings, HEAD, OPTIONS, base64."""

import asyncio
import base64
import gzip
import json
from urllib.parse import quote, urlencode

import numpy as np
import pytest

from serving.http.decoding import JPEG, JSON, NPY, PNG, WEBP, ZIP
from serving.http.encoding import encode_npy
from serving.runtime.admission import Overloaded
from serving.runtime.metrics import EndpointMetrics
from tests.serving.app_client import is_problem, make_client, make_image_file, make_slot_with, make_z, read_npy

HTTP = make_client()
DOCUMENT = HTTP.get("/openapi.json").json()
V1_ROUTES = [
    (method, path)
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if path.startswith("/v1/") and "{alias}" not in path
]
IMAGE_FILE = make_image_file()
BASE64 = base64.b64encode(IMAGE_FILE).decode()
# A valid JSON body of each POST route, without options.
BODIES = {
    "/v1/decode": {"z": make_z(1).tolist()},
    "/v1/sample": {},
    "/v1/encode": {"images": [BASE64]},
    "/v1/reconstruct": {"images": [BASE64]},
    "/v1/interpolate": {"z": make_z(2).tolist()},
    "/v1/neighbours": {"z": make_z(1).tolist()},
    "/v1/points/at": {},
    "/v1/frames": {"images": [BASE64]},
    "/v1/convert": {"images": [BASE64]},
}
# (route, its options in the query, the same options in the body)
OPTIONS = [
    ("/v1/sample", {"n": 3, "seed": 1}, {"n": 3, "seed": 1}),
    ("/v1/sample", {"sampler": "sphere", "n": 2, "seed": 4}, {"sampler": "sphere", "n": 2, "seed": 4}),
    (
        "/v1/sample",
        {"sampler": "cube", "seed": 2, "boundary": 3},
        {"sampler": "cube", "seed": 2, "parameters": {"boundary": 3}},
    ),
    (
        "/v1/reconstruct",
        {"task": "denoise", "sigma": 50, "seed": 1},
        {"task": "denoise", "parameters": {"sigma": 50}, "seed": 1},
    ),
    (
        "/v1/reconstruct",
        {"task": "drop", "keep": 0.1, "fill": "gray", "seed": 2},
        {"task": "drop", "parameters": {"keep": 0.1, "fill": "gray"}, "seed": 2},
    ),
    ("/v1/interpolate", {"steps": 4}, {"steps": 4}),
    ("/v1/interpolate", {"steps": 3, "path": "spherical"}, {"steps": 3, "path": "spherical"}),
    ("/v1/neighbours", {"k": 3}, {"k": 3}),
    ("/v1/points/at", {"x": 0.7, "y": -0.3, "k": 2}, {"x": 0.7, "y": -0.3, "k": 2}),
]


def post(path, body, query=None, **headers):
    """Return the response to a JSON `body`; the query is a dict or a list of pairs."""
    url = f"{path}?{urlencode(query)}" if query else path
    return HTTP.post(url, content=json.dumps(body), headers={"content-type": JSON, "accept": NPY, **headers})


def test_each_post_route_has_a_case():
    assert {path for method, path in V1_ROUTES if method == "post"} == set(BODIES)


@pytest.mark.parametrize(("path", "query", "options"), OPTIONS)
def test_options_in_the_query_have_the_effect_of_those_in_the_body(path, query, options):
    expected = post(path, {**BODIES[path], **options})
    assert expected.status_code == 200, expected.text
    assert post(path, BODIES[path], query).content == expected.content
    plain = post(path, {**BODIES[path], "seed": query["seed"]} if "seed" in query else BODIES[path])
    assert plain.content != expected.content


@pytest.mark.parametrize(("path", "query", "options"), OPTIONS)
def test_an_option_in_the_query_and_in_the_body_is_refused(path, query, options):
    for name, value in query.items():
        is_problem(post(path, {**BODIES[path], **options}, {name: value}), 422, name)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/sample", {"sampler": "sphere", "n": 2, "seed": 1}), ("/v1/sample", {"sampler": "cube", "seed": 1}),
        ("/v1/reconstruct", {"task": "denoise", "seed": 1}), ("/v1/reconstruct", {"task": "inpaint", "seed": 1}),
    ],
)  # fmt: skip
def test_a_parameter_that_is_null_has_its_default(path, options):
    """/v1/model has null as the default of the sphere's radius."""
    model = HTTP.get("/v1/model").json()
    defaults = model["samplers"][options["sampler"]] if "sampler" in options else model["tasks"][options["task"]]
    expected = post(path, {**BODIES[path], **options}).content
    for parameters in (defaults, dict.fromkeys(defaults)):
        response = post(path, {**BODIES[path], **options, "parameters": parameters})
        assert response.content == expected, response.text
    is_problem(post(path, {**BODIES[path], **options, "parameters": {"beta": None}}), 422, "beta")


@pytest.mark.parametrize("path", BODIES)
def test_an_option_takes_null_if_the_openapi_says_so(path):
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"][JSON]["schema"]
    properties = schema.get("anyOf", [schema])[0]["properties"]
    for name in properties.keys() - {"z", "images"}:
        response = post(path, {**BODIES[path], name: None}, accept=JSON)
        assert response.status_code == (200 if {"type": "null"} in properties[name].get("anyOf", []) else 422)
        assert response.status_code == 200 or is_problem(response, 422, f"{name}: ")


def test_options_may_be_split_between_query_and_body():
    whole = post("/v1/reconstruct", {"images": [BASE64], "task": "denoise", "parameters": {"sigma": 2}, "seed": 1})
    split = post("/v1/reconstruct", {"images": [BASE64], "parameters": {"sigma": 2}}, {"task": "denoise", "seed": 1})
    assert split.content == whole.content


@pytest.mark.parametrize(("method", "path"), V1_ROUTES)
@pytest.mark.parametrize("name", ["format", "radius", "model", "batch_size", "kind"])
def test_an_unknown_option_is_refused_by_each_route(method, path, name):
    if method == "get":
        is_problem(HTTP.get(f"{path}?{name}=1"), 422, name)
        return
    is_problem(post(path, BODIES[path], {name: 1}), 422, name)
    is_problem(post(path, {**BODIES[path], name: 1}), 422, name)
    npy = encode_npy(make_z(2) if "z" in BODIES[path] else np.zeros((1, 8, 8, 3), np.uint8))
    if BODIES[path]:
        is_problem(HTTP.post(f"{path}?{name}=1", content=npy, headers={"content-type": NPY}), 422, name)


@pytest.mark.parametrize(
    ("path", "query", "options", "name"),
    [
        ("/v1/sample", {"n": 0}, {}, "n"),
        ("/v1/sample", {"n": "many"}, {}, "n"),
        ("/v1/sample", {"seed": ""}, {}, "seed"),
        ("/v1/sample", {"sampler": ""}, {}, "sampler"),
        ("/v1/sample", {}, {"sampler": ""}, "sampler"),
        ("/v1/sample", {"boundary": 3}, {}, "boundary"),  # the default sampler, normal, has none
        ("/v1/sample", {"sampler": "sphere", "temperature": 2}, {"sampler": "cube"}, "sampler"),
        ("/v1/sample", {"parameters": '{"boundary": 3}'}, {}, "parameters"),
        ("/v1/reconstruct", {"sigma": 50}, {}, "sigma"),  # the default task, reconstruct, has none
        ("/v1/reconstruct", {"task": "drop"}, {"parameters": {"sigma": 1}}, "sigma"),
        ("/v1/reconstruct", {"task": "denoise", "kind": "drop"}, {}, "kind"),
        ("/v1/reconstruct", {}, {"task": "denoise", "parameters": {"kind": "drop"}}, "kind"),
        ("/v1/reconstruct", {"task": "denoise", "sigma": "loud"}, {}, "sigma"),
        ("/v1/interpolate", {"steps": 1}, {}, "steps"),
        ("/v1/interpolate", {"seed": 1}, {}, "seed"),
    ],
)
def test_invalid_and_contradicting_options_are_named(path, query, options, name):
    is_problem(post(path, {**BODIES[path], **options}, query), 422, name)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/sample", [("n", 1), ("n", 4)]),
        ("/v1/sample", [("sampler", "cube"), ("boundary", 1), ("boundary", 3)]),
        ("/v1/reconstruct", [("task", "drop"), ("task", "denoise")]),
        ("/v1/reconstruct", [("task", "denoise"), ("sigma", 1), ("sigma", 2)]),
        ("/v1/interpolate", [("steps", 3), ("steps", 3)]),
    ],
)
def test_a_repeated_key_of_the_query_is_refused(path, query):
    is_problem(post(path, BODIES[path], query), 422, f"'{query[-1][0]}' is given 2 times")


def test_a_repeated_key_of_a_json_body_is_refused():
    for body in (b'{"n": 1, "n": 4}', b'{"parameters": {"temperature": 1, "temperature": 2}}'):
        response = HTTP.post("/v1/sample", content=body, headers={"content-type": JSON})
        is_problem(response, 422, "duplicate key")


def test_sample_needs_no_body():
    expected = post("/v1/sample", {"n": 3, "seed": 1}).content
    assert HTTP.post("/v1/sample?n=3&seed=1", headers={"accept": NPY}).content == expected
    typed = HTTP.post("/v1/sample?n=3&seed=1", headers={"accept": NPY, "content-type": JSON})
    assert typed.content == expected


@pytest.mark.parametrize(
    ("path", "parameter_names"),
    [
        ("/v1/sample", {"sampler", "n", "seed", "parameters", "count_faces"}),
        ("/v1/reconstruct", {"task", "seed", "parameters"}),
        ("/v1/interpolate", {"steps", "path"}),
        ("/v1/neighbours", {"k"}),
        ("/v1/points/at", {"x", "y", "k"}),
        ("/v1/decode", set()),
        ("/v1/encode", set()),
        ("/v1/frames", set()),
    ],
)
def test_the_openapi_lists_the_options_of_the_query(path, parameter_names):
    operation = DOCUMENT["paths"][path]["post"]
    assert {parameter["name"] for parameter in operation.get("parameters", [])} == parameter_names
    assert operation["requestBody"]["required"] == bool(BODIES[path])


@pytest.mark.parametrize("path", BODIES)
def test_the_openapi_has_406_for_the_routes_that_heed_accept(path):
    response = HTTP.post(path, headers={"accept": "text/html"})
    assert (response.status_code == 406) == ("406" in DOCUMENT["paths"][path]["post"]["responses"])


@pytest.mark.parametrize("token", ["", "secret"])
def test_the_openapi_has_the_refusals_of_every_route_with_their_headers(token):
    http = make_client(token=token)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    document = http.get("/openapi.json", headers=headers).json()
    requests = [{"host": "zpoint.example"}, {"sec-fetch-site": "cross-site"}, {"authorization": "Bearer wrong"}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            refusals = [http.request(method, path.format(alias="champion"), headers=request) for request in requests]
            documented = operation["responses"].keys() & {"401", "403", "421"}
            assert {str(r.status_code) for r in refusals} & {"401", "403", "421"} == documented
            for refusal in refusals:
                if str(refusal.status_code) in documented:
                    check_headers(operation["responses"][str(refusal.status_code)], refusal)


def check_headers(documented, response):
    """Check that the OpenAPI has the headers of a response that are not those of every HTTP response."""
    names = {name.lower() for name in documented["headers"]}
    special = {"accept-encoding", "etag", "retry-after", "www-authenticate"}
    assert {name for name in response.headers if name in special or name.startswith("x-zpoint-")} == names


def test_the_openapi_has_the_headers_of_responses():
    async def refuse(*_):
        raise Overloaded(1.0)

    overloaded = make_client(make_slot_with(decode=refuse))
    etag = HTTP.get("/v1/points/thumbnails").headers["etag"]
    for method, path, response in (
        ("post", "/v1/decode", post("/v1/decode", BODIES["/v1/decode"])),
        ("post", "/v1/decode", HTTP.post("/v1/decode", content=b"", headers={"content-encoding": "gzip"})),
        ("post", "/v1/decode", HTTP.post("/v1/decode", content=b"{}")),
        ("post", "/v1/sample", overloaded.post("/v1/sample")),
        ("post", "/v1/sample", make_client(make_slot_with(points=None)).post("/v1/sample", json={"count_faces": True})),
        ("post", "/v1/reconstruct", post("/v1/reconstruct", BODIES["/v1/reconstruct"])),
        ("get", "/v1/points/thumbnails", HTTP.get("/v1/points/thumbnails")),
        ("get", "/v1/points/thumbnails", HTTP.get("/v1/points/thumbnails", headers={"if-none-match": etag})),
    ):
        check_headers(DOCUMENT["paths"][path][method]["responses"][str(response.status_code)], response)
    assert "content" not in DOCUMENT["paths"]["/v1/points/thumbnails"]["get"]["responses"]["304"]


@pytest.mark.parametrize("path", ["/v1/model", "/v1/models", "/v1/points", "/v1/points/thumbnails"])
def test_the_openapi_has_409_for_the_routes_that_refuse_another_version(path):
    is_problem(HTTP.get(path, headers={"x-zpoint-model": "zpoint/6"}), 409)
    assert "409" in DOCUMENT["paths"][path]["get"]["responses"]


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/v1/model", "/metrics", "/openapi.json", "/", "/docs", "/static/app.js"]
)
def test_head_has_the_headers_of_get_and_no_body(path):
    response, expected = HTTP.head(path), HTTP.get(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == expected.headers["content-type"]
    if path != "/metrics":  # its length changes with each request
        assert response.headers["content-length"] == expected.headers["content-length"]


def test_head_sends_no_body_to_the_server_either():
    """The test client and uvicorn would drop it; other servers may not."""
    scope = {
        "type": "http", "method": "HEAD", "path": "/healthz", "headers": [(b"host", b"localhost")], "query_string": b"",
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(HTTP.app(scope, receive, send))
    assert sent[0]["status"] == 200
    assert b"".join(message["body"] for message in sent[1:]) == b""


def test_head_of_other_paths_fails_as_get_does():
    assert HTTP.head("/v1/decode").status_code == 405
    assert HTTP.head("/nothing").status_code == 404
    assert make_client(token="secret").head("/v1/model").status_code == 401


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/decode", {"POST"}),
        ("/v1/sample", {"POST"}),
        ("/v1/model", {"GET", "HEAD"}),
        ("/healthz", {"GET", "HEAD"}),
        ("/", {"GET", "HEAD"}),
        ("/static/app.js", {"GET", "HEAD"}),
    ],
)
def test_options_lists_the_methods_and_a_preflight_needs_no_token(path, methods):
    preflight = {"origin": "https://other.example", "access-control-request-method": "POST"}
    for http in (HTTP, make_client(token="secret")):
        response = http.options(path, headers=preflight)
        assert (response.status_code, response.content) == (204, b"")
        assert set(response.headers["allow"].split(", ")) == methods | {"OPTIONS"}
        assert not [name for name in response.headers if name.startswith("access-control-")]
    is_problem(HTTP.options("/nothing"), 404)
    refused = HTTP.delete(path)
    is_problem(refused, 405)
    assert set(refused.headers["allow"].split(", ")) == methods | {"OPTIONS"}


FORMS = {  # a body and the media types under which clients send it
    "npy": (
        encode_npy(make_z(2)),
        "/v1/decode",
        [NPY, "application/x-numpy", "application/npy", "application/octet-stream", "", "APPLICATION/X-NPY"],
    ),
    "json": (
        json.dumps({"z": make_z(2).tolist()}).encode(),
        "/v1/decode",
        [
            JSON,
            "application/json; charset=utf-8",
            "text/json",
            "Application/JSON;charset=UTF-8",
            "application/octet-stream",
            "",
        ],
    ),
    "png": (IMAGE_FILE, "/v1/encode", [PNG, "image/x-png", "image/*", "application/octet-stream", ""]),
    "jpeg": (
        make_image_file(kind="JPEG"),
        "/v1/encode",
        [JPEG, "image/jpg", "image/pjpeg", "IMAGE/JPG", "application/octet-stream", ""],
    ),
    "webp": (make_image_file(kind="WEBP"), "/v1/encode", [WEBP, "image/x-webp", "application/octet-stream", ""]),
}


@pytest.mark.parametrize(
    ("form", "content_type"), [(form, content_type) for form, (*_, types) in FORMS.items() for content_type in types]
)
def test_aliases_of_media_types_and_bodies_without_one_are_accepted(form, content_type):
    body, path, types = FORMS[form]
    expected = HTTP.post(path, content=body, headers={"content-type": types[0], "accept": NPY})
    headers = {"accept": NPY} | ({"content-type": content_type} if content_type else {})
    response = HTTP.post(path, content=body, headers=headers)
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(read_npy(response.content), read_npy(expected.content))


@pytest.mark.parametrize("content_type", ["", JSON, NPY, PNG])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "uint8", "float", "z", "empty", "text"])
@pytest.mark.parametrize("path", BODIES)
def test_no_kind_of_body_is_an_internal_error(path, kind, content_type):
    """An image without a content type once reached the decoder as z-points."""
    array = {"uint8": np.zeros((2, 16, 16, 3), np.uint8), "float": np.zeros((2, 3)), "z": make_z(2)}
    bytes_of = {"empty": b"", "text": b"a text"}
    if kind in array:
        body = encode_npy(array[kind])
    else:
        body = bytes_of[kind] if kind in bytes_of else make_image_file(kind=kind)
    response = HTTP.post(path, content=body, headers={"content-type": content_type} if content_type else {})
    assert response.status_code in (200, 413, 415, 422), response.text


@pytest.mark.parametrize("path", ["/v1/decode", "/v1/neighbours"])
def test_an_image_in_place_of_z_points_is_refused(path):
    is_problem(HTTP.post(path, content=IMAGE_FILE), 422, "the body is an image file: send z-points")


def test_an_image_of_another_format_is_named():
    response = HTTP.post("/v1/encode", content=make_image_file(kind="GIF"))
    is_problem(response, 422, "images[0]: it is a GIF image: only PNG, JPEG, WEBP")


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "image/gif",
        "image/tiff",
        "text/plain",
        "garbage",
    ],
)
def test_another_media_type_is_a_415_that_names_it(content_type):
    response = HTTP.post("/v1/encode", content=IMAGE_FILE, headers={"content-type": content_type})
    is_problem(response, 415, content_type.partition(";")[0])


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "zstd", "gzip, br", "x-gzip"])
@pytest.mark.parametrize("path", BODIES)
def test_an_encoded_body_is_a_415_that_names_the_encoding(path, encoding):
    body = gzip.compress(json.dumps(BODIES[path]).encode())
    response = HTTP.post(path, content=body, headers={"content-type": JSON, "content-encoding": encoding})
    is_problem(response, 415, f"'{encoding.lower()}'")
    assert response.headers["accept-encoding"] == "identity"
    plain = post(path, BODIES[path], **{"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("image/jpg", JPEG),
        ("image/x-png, */*;q=0.1", PNG),
        ("text/json", JSON),
        ("application/x-numpy", NPY),
        ("application/x-zip-compressed", ZIP),
        ("image/pjpeg;q=0.5, image/webp;q=0.4", JPEG),
        ("*", PNG),  # Java's URLConnection
        (",,", PNG),
        ("image/png;q=nan, image/webp;q=0.5", WEBP),
        ("image/png;q=0, */*;q=0.5", JPEG),
    ],
)
def test_accept_takes_aliases(accept, media_type):
    response = HTTP.post("/v1/sample?n=2", headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)


def test_repeated_accept_headers_are_one_list():
    response = HTTP.post("/v1/sample", headers=[("accept", "text/html"), ("accept", "image/webp")])
    assert response.headers["content-type"] == WEBP


BASE64_FORMS = {  # functions of the file, of its base64 and of its base64url
    "standard": lambda file, text, urlsafe: text,
    "urlsafe": lambda file, text, urlsafe: urlsafe,
    "unpadded": lambda file, text, urlsafe: text.rstrip("="),
    "urlsafe unpadded": lambda file, text, urlsafe: urlsafe.rstrip("="),
    "lines": lambda file, text, urlsafe: base64.encodebytes(file).decode(),
    "CRLF": lambda file, text, urlsafe: base64.encodebytes(file).decode().replace("\n", "\r\n"),
    "spaces around": lambda file, text, urlsafe: f"  {text}\t\n",
    "data URL": lambda file, text, urlsafe: f"data:image/png;base64,{text}",
    "data URL, spaces around": lambda file, text, urlsafe: f" data:image/png;base64, {text}\n",
    "data URL, upper case": lambda file, text, urlsafe: f"DATA:image/png;BASE64,{text}",
    "data URL with parameters": lambda file, text, urlsafe: f"data:image/png;name=a.png;charset=utf-8;base64,{urlsafe}",
    "data URL without a type": lambda file, text, urlsafe: f"data:;base64,{text}",
    "data URL, percent-encoded": lambda file, text, urlsafe: "data:image/png;base64," + quote(text, safe=""),
}


@pytest.mark.parametrize("form", BASE64_FORMS)
def test_each_form_of_base64_is_read(form):
    paddings = set()
    for extra in (b"", b"\xff", b"\xff\xff"):  # PNG readers ignore what follows the image
        file = IMAGE_FILE + extra
        text, urlsafe = base64.b64encode(file).decode(), base64.urlsafe_b64encode(file).decode()
        assert set("+/") < set(text)
        paddings.add(text.count("="))
        expected = HTTP.post("/v1/encode", content=file, headers={"content-type": PNG}).json()["z"]
        image = BASE64_FORMS[form](file, text, urlsafe)
        assert HTTP.post("/v1/encode", json={"images": [image]}).json()["z"] == expected
    assert paddings == {0, 1, 2}


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png,%89PNG",
        f"data:image/png,{BASE64}",  # text, by RFC 2397
        "data:image/png;base64",
        "base64,AAAA",
        "@@@@",
        "A",
        "AAAAA",
        "AA=A",
        "é",
        "https://a.b/c",
    ],
)
def test_other_texts_are_a_422_that_names_the_image(text):
    is_problem(HTTP.post("/v1/encode", json={"images": [BASE64, text]}), 422, "images[1] is not base64")


def test_json_is_compressed_for_clients_that_accept_gzip_and_images_are_not():
    http = make_client()
    plain = http.get("/v1/model", headers={"accept-encoding": "identity"})
    packed = http.get("/v1/model", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) * 0.7
    assert packed.json() == plain.json()
    assert "content-encoding" not in plain.headers
    for accept in (NPY, PNG, WEBP, ZIP):
        response = http.post("/v1/sample?n=9&seed=1", headers={"accept": accept, "accept-encoding": "gzip"})
        assert "content-encoding" not in response.headers
        assert response.headers["x-zpoint-model"] == "zpoint/7"
    images = http.post("/v1/sample?n=9&seed=1", headers={"accept": JSON, "accept-encoding": "gzip"})
    assert images.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("accept_encoding", "is_compressed"),
    [
        ("gzip;q=0", False), ("br, GZIP ; q=0.000, identity", False), ("gzip;q=0.5", True), ("gzip;q=0.01", True),
        ("gzip, br;q=0", True),
    ],
)  # fmt: skip
def test_json_is_not_compressed_for_clients_that_refuse_gzip(accept_encoding, is_compressed):
    metrics = EndpointMetrics()
    response = make_client(metrics=metrics).get("/v1/model", headers={"accept-encoding": accept_encoding})
    assert response.headers.get("content-encoding") == ("gzip" if is_compressed else None)
    assert response.headers["vary"] == "Accept-Encoding"
    assert ("zpoint_requests_total", (("route", "/v1/model"), ("status", "200"))) in metrics.samples()


def test_the_openapi_names_the_token_if_the_endpoint_needs_one():
    schemes = make_client(token="secret").get("/openapi.json").json()["components"]["securitySchemes"]
    assert [(scheme["type"], scheme["scheme"]) for scheme in schemes.values()] == [("http", "bearer")]
    assert "securitySchemes" not in DOCUMENT["components"]
