"""The page on a local port: what the server answers to images, to mistakes and to garbage, and the page in a browser."""

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import browser
import numpy as np
import pytest
import torch
from demo_models import NAMES, photo, save_model
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn_bench.cli import main
from maskrcnn_bench.demo import answers, draw, serve
from maskrcnn_bench.demo.predictor import COCODemo
from maskrcnn_bench.demo.serve import DemoServer, content_policy, serve_main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def demo(weights):
    return COCODemo.from_weights(weights)


@contextlib.contextmanager
def serving(demo):
    server = DemoServer("127.0.0.1", 0, demo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def server(demo):
    with serving(demo) as server:
        yield server


def encoded(picture=None, kind="PNG", **options):
    file = io.BytesIO()
    (picture or photo()).save(file, kind, **options)
    return file.getvalue()


def ask(server, path, content=None, kind="image/png", method=None, **headers):
    """Status, headers and body of an answer."""
    url = f"http://127.0.0.1:{server.server_port}{path}"
    about = ({"Content-Type": kind} if content is not None else {}) | headers
    request = urllib.request.Request(url, content, about, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def refused(server, *args, **kwargs):
    """Status and text of an answer that is an error."""
    status, headers, content = ask(server, *args, **kwargs)
    assert headers["Content-Type"] == "application/json"
    (text,) = json.loads(content).values()
    assert "Traceback" not in text and "\n" not in text
    return status, text


def alive(server):
    status, _, content = ask(server, "/detect?score=0", encoded())
    return status == 200 and len(json.loads(content)["detections"]) > 0


# answers


def test_detections_are_those_of_the_model(server, demo):
    picture = photo(90, 70)
    status, _, content = ask(server, "/detect?score=0.2", encoded(picture))
    answer = json.loads(content)
    (found,) = demo.detect([picture])
    found = found[found.get_field("scores") > 0.2]
    assert status == 200 and (answer["width"], answer["height"]) == (90, 70) and answer["milliseconds"] > 0
    assert len(answer["detections"]) == len(found) > 0
    masks = demo.run_lengths(found)
    for row, box, label, mask in zip(answer["detections"], found.convert("xywh").bbox, found.get_field("labels"), masks):
        assert row["bbox"] == pytest.approx(box.tolist(), abs=0.02) and row["category_name"] == NAMES[label]
        assert (coco_mask.decode(row["segmentation"]) == coco_mask.decode(mask)).all()
    scores = [row["score"] for row in answer["detections"]]
    assert scores == sorted(scores, reverse=True)


def test_drawn_picture(server):
    status, headers, content = ask(server, "/draw?score=0&opacity=1", encoded(photo(200, 400)))
    drawn = Image.open(io.BytesIO(content))
    assert (status, headers["Content-Type"], drawn.format, drawn.size) == (200, "image/jpeg", "JPEG", (200, 400))
    plain = Image.open(io.BytesIO(ask(server, "/draw?score=1", encoded(photo(200, 400)))[2]))
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(plain)).mean() > 2


def test_model_without_masks(tmp_path):
    with serving(COCODemo.from_weights(save_model(tmp_path, "faster_fpn"))) as server:
        rows = json.loads(ask(server, "/detect?score=0", encoded())[2])["detections"]
        assert rows and "segmentation" not in rows[0]
        assert json.loads(ask(server, "/model")[2])["masks"] is False


def test_page_and_picture_show_the_same_keypoints(tmp_path, monkeypatch):
    demo = COCODemo.from_weights(save_model(tmp_path, "keypoint_fpn"))
    with serving(demo) as server:
        for least in (-1e9, 1e9):
            monkeypatch.setattr(draw, "KEYPOINT_LOGIT", least)
            rows = json.loads(ask(server, "/detect?score=0", encoded())[2])["detections"]
            assert rows and all(row["seen"] == [least < 0] * 3 for row in rows)


@pytest.mark.parametrize(("host", "status"), [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("evil.example:8080", 403)])
def test_foreign_names_that_lead_here_are_turned_away(server, host, status):
    assert ask(server, "/model", Host=host)[0] == status


def test_page_and_description(server):
    status, headers, page = ask(server, "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert ask(server, "/", method="HEAD")[2] == b"" and ask(server, "/?a=b#c")[2] == page
    assert b"http:" not in page.replace(b"http://www.w3.org/2000/svg", b"") and b"https:" not in page, "nothing comes from elsewhere"
    about = json.loads(ask(server, "/model")[2])
    assert tuple(about["classes"]) == NAMES and len(about["colors"]) == len(NAMES) and about["most_bytes"] == serve.MOST_BYTES


def test_policy_lets_only_the_page_s_own_scripts_run():
    policy = content_policy("<style>a</style><script>1</script><script>2</script>")
    assert policy.count("sha256-") == 3 and "unsafe" not in policy and "default-src 'none'" in policy


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kinds_of_images(server, kind):
    assert ask(server, "/detect", encoded(kind=kind), f"image/{kind.lower()}; q=1")[0] == 200


def test_unusual_images(server):
    sixteen = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    bodies = [encoded(sixteen), encoded(photo().convert("CMYK"), "JPEG"), encoded(photo().convert("LA")), encoded(Image.new("RGB", (1, 1)))]
    bodies += [encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), encoded(Image.new("RGB", (3000, 1)))]
    for body in bodies:
        status, _, content = ask(server, "/detect?score=0", body)
        assert status == 200, content


# mistakes


def test_images_that_cannot_be_read(server):
    whole = encoded(photo(200, 200), "JPEG")
    for body, message in [
        (b"", "not an image that Pillow can read: the file is empty"),
        (b"<html>", "not an image that Pillow can read"),
        (whole[: len(whole) // 2], "cannot be read (image file is truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that Pillow can read"),
    ]:
        for path in ("/detect", "/draw"):
            status, text = refused(server, path, body)
            assert status == 400 and text.startswith(f"the image {'is ' if message.startswith('not') else ''}{message}")
    assert alive(server)


def test_too_many_pixels(server, monkeypatch):
    monkeypatch.setattr(answers, "MOST_PIXELS", 100 * 100)
    status, text = refused(server, "/detect", encoded(Image.new("1", (101, 100))))
    assert status == 413 and text == "the image is too large (101 x 100 pixels); scale it down"
    assert ask(server, "/detect", encoded(Image.new("1", (100, 100))))[0] == 200


def test_picture_longer_than_a_jpeg(server):
    status, text = refused(server, "/draw", encoded(Image.new("1", (70000, 1))))
    assert status == 413 and "longer than a JPEG" in text


def test_body_over_the_limit(server):
    status, text = refused(server, "/detect", bytes(serve.MOST_BYTES + 1))
    assert status == 413 and text == "the image has 20.0 MiB; at most 20 are taken"
    assert alive(server)


def test_body_over_the_limit_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.server_port), 10) as client:
        head = f"POST /detect HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: {10**15}\r\nExpect: 100-continue\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "image/svg+xml", "image/x-eps", "multipart/form-data", ""])
def test_other_types(server, kind):
    status, text = refused(server, "/detect", encoded(), kind)
    assert status == 415 and "image/jpeg" in text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_methods(server, method):
    status, headers, content = ask(server, "/detect", method=method)
    assert status == 405 and headers["Allow"] == "POST" and method in json.loads(content)["error"]
    assert "Access-Control-Allow-Origin" not in headers, "pages of other places get nothing"


def test_wrong_method_for_the_page(server):
    status, headers, _ = ask(server, "/", b"x")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    ["/../setup.py", "/..%2f..%2fetc/passwd", "//etc/passwd", "/page.html", "/etc/passwd", "/detect/../../etc", "/%00", "/model/", "/./"],
)
def test_no_path_reaches_a_file(server, path):
    client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    client.putrequest("GET", path, skip_host=True)
    client.endheaders()
    answer = client.getresponse()
    assert answer.status == 404 and b"root:" not in answer.read()
    client.close()


@pytest.mark.parametrize("query", ["score=x", "score=nan", "score=2", "score=-1", "score=1e400", "score=" + "9" * 500])
def test_numbers_that_are_none(server, query):
    status, text = refused(server, f"/detect?{query}", encoded())
    assert status == 400 and text.startswith("score: expected a number from 0 to 1") and len(text) < 100


HEAD = b"POST /detect HTTP/1.1\r\nContent-Type: image/png\r\n"
GARBAGE = [
    *(b"\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", os.urandom(5000)),
    *(b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n"),
    *(b"GET " + b"/" * 70000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n"),
    *(HEAD + b"Content-Length: %s\r\n\r\n" % length for length in (b"-1", b"x", b"1_0", b"9" * 50)),
    HEAD + b"\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 100\r\n\r\nleft early",
]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_answered_or_dropped_and_the_server_lives(server, content):
    with socket.create_connection(("127.0.0.1", server.server_port), 20) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(1 << 16)
            assert answer == b"" or answer.split(b" ")[1][:1] in (b"4", b"5") or answer.startswith(b"{"), answer
    assert alive(server)


def test_one_connection_takes_many_requests(server):
    client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    for _ in range(3):
        client.request("POST", "/detect", encoded(), {"Content-Type": "image/png"})
        assert client.getresponse().read()
    local = client.sock.getsockname()
    client.request("GET", "/model")
    assert client.getresponse().read() and client.sock.getsockname() == local
    client.close()


def test_body_of_a_request_that_has_none_is_not_taken_for_the_next_request(server):
    with socket.create_connection(("127.0.0.1", server.server_port), 10) as client:
        client.sendall(b"GET /model HTTP/1.1\r\nContent-Length: 30\r\n\r\nDELETE / HTTP/1.1\r\n\r\n          ")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in answer


# load


def test_one_at_a_time_a_few_wait_the_rest_is_turned_away(demo, monkeypatch):
    running, most, go = [], [], threading.Event()
    detect = COCODemo.detect

    def slow(self, pictures):
        running.append(1)
        most.append(len(running))
        go.wait(20)
        found = detect(self, pictures)
        running.pop()
        return found

    monkeypatch.setattr(COCODemo, "detect", slow)
    with serving(demo) as server, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, server, "/detect", encoded()) for _ in range(12)]
        end = time.monotonic() + 20
        while sum(one.done() for one in asked) < 12 - 1 - serve.WAITING and time.monotonic() < end:
            time.sleep(0.01)
        assert ask(server, "/model")[0] == 200, "what needs no model is answered at once"
        go.set()
        replies = [one.result() for one in asked]
    statuses = sorted(status for status, _, _ in replies)
    assert statuses == [200] * (1 + serve.WAITING) + [503] * (11 - serve.WAITING) and max(most) == 1
    assert {headers["Retry-After"] for status, headers, _ in replies if status == 503} == {"1"}


def test_too_many_connections_are_turned_away(demo, monkeypatch):
    monkeypatch.setattr(serve, "CONNECTIONS", 3)
    with serving(demo) as server:
        clients = [socket.create_connection(("127.0.0.1", server.server_port), 10) for _ in range(3)]
        for client in clients:
            client.sendall(b"GET /model HTTP/1.1\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", server.server_port), 10) as one_more:
            assert one_more.recv(1000).startswith(b"HTTP/1.1 503")
        for client in clients:
            client.close()
        end = time.monotonic() + 10
        while (status := ask(server, "/model")[0]) != 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert status == 200


@pytest.mark.parametrize("error,status", [(RuntimeError("bug"), 500), (torch.OutOfMemoryError("full"), 503), (MemoryError(), 503)])
def test_model_that_fails_does_not_end_the_server(server, monkeypatch, error, status, caplog):
    def fail(self, pictures):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(COCODemo, "detect", fail)
        found, text = refused(server, "/detect", encoded())
    assert found == status and "bug" not in text
    assert ("bug" in caplog.text) == (status == 500), "the log has the trace"
    assert alive(server)


# the verb


def test_verb_hands_over(capsys, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--serve", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "maskrcnn-bench demo --serve" in out and "--port" in out and "127.0.0.1" in out
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "--serve" in capsys.readouterr().out


def test_mistakes_are_one_line(weights, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, message in [
        ([], "no trained model in output/demo; name one with --weights"),
        (["--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--weights", weights, "--port", str(server.server_port)], "--port 0 any free one"),
        (["--weights", weights, "--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
    ]:
        assert serve_main(words) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1
    for words in (["--port", "70000"], ["--port", "x"], ["--score", "2"]):
        with pytest.raises(SystemExit):
            serve_main(words)


def test_only_this_machine_unless_asked(weights, monkeypatch, capsys):
    bound = []
    monkeypatch.setattr(DemoServer, "serve_forever", lambda self: bound.append(self.server_address[0]))
    for words in ([], ["--host", "0.0.0.0"], ["--host", "::1"] if socket.has_ipv6 else []):
        with contextlib.suppress(OSError):
            serve_main(["--weights", weights, "--port", "0", *words])
    out = capsys.readouterr().out
    assert bound[:2] == ["127.0.0.1", "0.0.0.0"] and out.count("Everybody who reaches this machine") == 1


def test_process_ends_with_ctrl_c(weights, repository):
    code = "import sys; from maskrcnn_bench.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--serve", "--port", "0", "--weights", weights]
    # What runs in the background of a script is started deaf to Ctrl-C, and so would be its children.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=repository, preexec_fn=heed, **pipes) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Open http://127.0.0.1:")
            connection = http.client.HTTPConnection(urlsplit(line.split()[1]).netloc, timeout=10)
            connection.request("GET", "/")
            connection.getresponse().read()  # and the connection stays open
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, process.stderr.read()
            assert connection.sock.recv(1) == b""
        finally:
            process.kill()


def test_connections_end_with_the_server(demo):
    with serving(demo) as server:
        with socket.create_connection(server.server_address) as idle:
            idle.sendall(b"GET /model HTTP/1.1\r\nHost: a\r\n\r\n")
            assert idle.recv(4)
            (thread,) = server._talking
            server.shutdown()
            server.server_close()
            assert not thread.is_alive() and not server._talking


# the page


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    if not browser.program():
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    with browser.Browser(tmp_path_factory.mktemp("browser")) as page:
        page.address = f"http://127.0.0.1:{server.server_port}/"
        yield page


def drop(page, name, content, kind):
    """Lets a file fall on the page."""
    script = """((content, name, type) => {
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0)), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true, bubbles: true }));
    })"""
    page.evaluate(f"{script}({json.dumps(base64.b64encode(content).decode())}, {json.dumps(name)}, {json.dumps(kind)})")


def test_dropped_picture_and_sliders(page, demo):
    page.open(page.address)
    page.wait("about")
    picture = photo(80, 64)
    drop(page, "a.png", encoded(picture), "image/png")
    page.wait("shown")
    (found,) = demo.detect([picture])
    scores = found.get_field("scores")

    def count(least):
        page.evaluate(f"byId('score').value = {least}; byId('score').dispatchEvent(new Event('input'))")
        return int(page.evaluate("byId('count').dataset.count")), page.evaluate("byId('found').children.length")

    low, high = round(float(scores[-1]) - 0.01, 2), round(float(scores[1]) + 0.01, 2)
    for least in (max(low, 0.05), high):
        expected = int((scores > least).sum())
        assert count(least) == (expected, expected)
    assert page.evaluate("byId('latency').textContent").endswith(" ms")
    # The masks that the page unpacks are those of the model.
    masks = np.stack([coco_mask.decode(mask) for mask in demo.run_lengths(found)])
    areas = page.evaluate("shown.detections.map((found) => bitmap(found.segmentation).pixels.reduce((a, b) => a + b, 0))")
    assert areas == masks.sum(axis=(1, 2)).tolist()[: len(areas)] and areas
    plain = page.evaluate("view.toDataURL()")
    page.evaluate("byId('score').value = 0.05; byId('opacity').value = 1; byId('opacity').dispatchEvent(new Event('input'))")
    assert page.evaluate("view.toDataURL()") != plain
    assert page.complaints() == []


def test_pasted_picture(page):
    page.open(page.address)
    page.wait("about")
    content = json.dumps(base64.b64encode(encoded()).decode())
    page.evaluate(f"""(() => {{
        const bytes = Uint8Array.from(atob({content}), (c) => c.charCodeAt(0)), transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "p.png", {{ type: "image/png" }}));
        dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: transfer }}));
    }})()""")
    page.wait("shown && shown.blob.name === 'p.png'")


def test_camera(page):
    page.open(page.address, 390, 844, phone=True)
    page.wait("about")
    page.evaluate("byId('camera').click()")
    page.wait("stream && shown && byId('rate').textContent.endsWith('/ s')")
    first = page.evaluate("shown.picture.toDataURL()")
    page.wait(f"shown.picture.toDataURL() !== {json.dumps(first)}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "fits a phone"
    assert int(page.evaluate("byId('latency').textContent").split()[0]) > 0
    page.evaluate("byId('camera').click()")
    assert page.evaluate("stream === null && byId('camera').textContent === 'Start camera'")


def test_camera_that_vanishes_or_is_absent(page):
    page.open(page.address)
    page.wait("about")
    page.evaluate("byId('camera').click()")
    page.wait("stream && shown")
    page.evaluate("stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    assert "The camera has gone" in page.wait("byId('message').textContent") and page.evaluate("stream === null")
    troubles = {"NotFoundError": "There is no camera", "NotAllowedError": "not allowed", "NotReadableError": "another program"}
    for name, message in troubles.items():
        page.evaluate(f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('x', '{name}') }}; startCamera()")
        assert message in page.evaluate("byId('message').textContent")


def test_faulty_picture_is_told_and_the_page_goes_on(page):
    page.open(page.address)
    page.wait("about")
    drop(page, "half.jpg", encoded(photo(200, 200), "JPEG")[:1500], "image/jpeg")
    page.wait("byId('message').classList.contains('bad')")
    drop(page, "notes.txt", b"no picture", "text/plain")
    assert "Content-Type" in page.wait("byId('message').textContent.includes('text/plain') && byId('message').textContent")
    drop(page, "good.png", encoded(), "image/png")
    page.wait("shown && byId('message').textContent === ''")


def test_page_says_that_the_server_has_gone(page):
    page.open(page.address)
    page.wait("about")

    page.call("Network.enable")

    def connected(yes):
        page.call("Network.emulateNetworkConditions", offline=not yes, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    page.evaluate("byId('camera').click()")
    page.wait("stream && shown")
    connected(False)
    page.wait("byId('message').textContent.includes('does not answer; waiting')")
    connected(True)
    page.wait("byId('message').textContent === ''")
    connected(False)
    drop(page, "a.png", encoded(), "image/png")
    page.wait("byId('message').textContent.includes('does not answer; is it still running')")
    connected(True)
