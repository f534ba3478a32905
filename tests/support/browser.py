"""A real headless Chromium for tests of pages: it opens one, runs a script in it, and answers."""

import contextlib
import http.server
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip


def find_browser() -> str:
    """The path of a Chromium; skips the test where none is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}")
    return found


@contextlib.contextmanager
def _browser(*arguments):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [find_browser(), *FLAGS, f"--user-data-dir={profile}", *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **quiet)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its renderers too
            process.wait()


def run_in_page(page: pathlib.Path, script: str, hash_: str = "", seconds: float = 60.0):
    """What the body of an async function returns that runs once the gallery of a page is there.

    The function has `$(selector)`, `all(selector)` and `until(condition)`. The page is served as it
    is, with the script added at its end.
    """
    answers: queue.Queue = queue.Queue()
    added = f"""<script>
    const $ = (selector) => document.querySelector(selector);
    const all = (selector) => [...document.querySelectorAll(selector)];
    const until = async (condition) => {{
      while (!condition()) await new Promise((resume) => setTimeout(resume, 10));
    }};
    (async () => {{
      let answer;
      try {{
        await until(() => document.body.dataset.ready === "yes");
        answer = await (async () => {{ {script} }})();
      }} catch (error) {{ answer = {{ error: String(error) }}; }}
      await fetch("/answer", {{ method: "POST", body: JSON.stringify(answer ?? null) }});
    }})();
    </script>"""
    body = page.read_text(encoding="utf-8").encode() + added.encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_page = self.path == "/page.html"
            self.send_response(200 if is_page else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            if is_page:
                self.wfile.write(body)

        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/page.html#{hash_}"
        with _browser("--remote-debugging-port=0", url):
            answer = answers.get(timeout=seconds)
        server.shutdown()
    assert not (isinstance(answer, dict) and "error" in answer), answer
    return answer


def take_picture(
    page: pathlib.Path, picture: pathlib.Path, *, hash_="", size=(1280, 1600), dark=False
):
    """A PNG of the page as a browser shows the file, to people who like light or dark pages."""
    width, height = size
    command = (
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},{height}",
        "--virtual-time-budget=5000",
        f"--screenshot={picture}",
        f"file://{page.absolute()}#{hash_}",
    )
    with _browser(*command) as process:
        process.wait(timeout=600)
