"""https, with a certificate of the operator's: answers, streams, and what comes before the model is there."""

import shutil
import ssl
import subprocess

import httpx
import pytest

from sobre.serve.config import ServeConfig
from sobre.serve.keys import Keyring
from sobre.serve.loading import Loading
from sobre.serve.server import bind

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """Settings with a certificate for this machine that signs itself, and a client's context that trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    files = {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}
    kind = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command = ["openssl", "req", "-x509", *kind, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command += ["-out", files["tls_cert"], "-keyout", files["tls_key"]]
    subprocess.run(command, check=True, capture_output=True)
    return files, ssl.create_default_context(cafile=files["tls_cert"])


def test_answers_and_streams_come_over_https_alone(serving, scripted, answer_ids, signed):
    files, trusted = signed
    with serving(scripted(lambda request: answer_ids("hm", "seven")), **files) as live:
        assert live.server.scheme == "https"
        with httpx.Client(base_url=live.url.replace("http:", "https:"), verify=trusted, timeout=20) as http:
            assert http.post(PATH, json=HELLO).json()["choices"][0]["message"]["content"] == "seven"
            assert http.post(PATH, json=HELLO | {"stream": True}).text.endswith("data: [DONE]\n\n")
            assert http.get("/").headers["content-security-policy"].startswith("default-src 'none'")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{live.url}/healthz")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{live.url.replace('http:', 'https:')}/healthz")


def test_what_comes_before_the_model_comes_over_https_too(signed):
    files, trusted = signed
    with bind("127.0.0.1", 0) as listener, Loading(listener, ServeConfig(model=("m",), **files), Keyring([])):
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert httpx.get(f"{url}/readyz", verify=trusted).json()["error"]["code"] == "loading"
