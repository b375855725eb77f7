"""A Hub on this machine that serves folders as data set repositories to the real `huggingface_hub` client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def served(repositories: dict[str, Path], monkeypatch, cache: Path):
    """Serve `repositories` ('user/name' -> folder) while the client looks there, and here for its cache.

    Yields the server: `requests` lists (method, path, bytes sent), `cut_after` ends every answer after so many bytes.
    """
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repositories, server.requests, server.cut_after = repositories, [], None
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (
        ("ENDPOINT", address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_CACHE", str(cache)),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(repository: str) -> str:
    """The commit at which a repository stands."""
    return hashlib.sha1(repository.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def do_POST(self):
        self._asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self._answer(with_body=True)

    def log_message(self, *_):
        pass

    def _answer(self, with_body):
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in (
            (r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/api/datasets/([^/]+/[^/]+)/(?:tree|paths-info)/([^/]+)(?:/(.*))?", self._tree),
            (r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        ):
            if match := re.fullmatch(pattern, path):
                repository, revision, *rest = match.groups()
                if repository not in self.server.repositories:
                    return self._send(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})
                if revision not in (None, "main", commit_of(repository)):
                    return self._send(404, b"", with_body, {"X-Error-Code": "RevisionNotFound"})
                return answer(repository, with_body, *rest)
        return self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})

    def _files(self, repository):
        root = self.server.repositories[repository]
        return {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*")) if file.is_file()}

    def _info(self, repository, with_body):
        siblings = [{"rfilename": name} for name in self._files(repository)]
        self._json({"id": repository, "sha": commit_of(repository), "siblings": siblings}, with_body)

    def _tree(self, repository, with_body, folder=None):
        asked = set(re.findall(r"paths=([^&]*)|\"paths\": \[\"([^\"]*)", unquote(getattr(self, "_asked", ""))))
        wanted = {one or other for one, other in asked}
        entries = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name, file in self._files(repository).items()
            if (not wanted or name in wanted) and (not folder or name.startswith(f"{folder}/"))
        ]
        self._json(entries, with_body)

    def _file(self, repository, with_body, name):
        file = self._files(repository).get(name)
        if file is None:
            return self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
        content, status = file.read_bytes(), 200
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": commit_of(repository),
            "Accept-Ranges": "bytes",
        }
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self._send(status, content, with_body, headers)

    def _json(self, value, with_body):
        self._send(200, json.dumps(value).encode(), with_body, {"Content-Type": "application/json"})

    def _send(self, status, content, with_body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = self.server.cut_after
        if with_body:
            self.wfile.write(content if cut is None else content[:cut])
            if cut is not None and len(content) > cut:
                self.close_connection = True
        self.server.requests.append((self.command, self.path, len(content) if with_body else 0))
