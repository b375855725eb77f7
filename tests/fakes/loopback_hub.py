"""A Hub in this process: the part of huggingface.co that the real clients use, in memory, with faults on demand.

    with Hub() as hub:
        hub.connect(monkeypatch, cache_folder)                      # clients of this process go there
        subprocess.run(..., env=hub.environment(cache_folder))      # and those of others

    hub.fail(r"PUT /objects/", status=500, times=2)                 # the next two uploads are refused
    hub.fail(r"GET .*/resolve/", after=1000)                        # every download is cut behind 1000 bytes

A repository is a chain of commits, each a full mapping of paths to blobs. Small text is kept in git and the rest as
large objects by sha256, as the Hub does; xet, its newer protocol, is off. `hub.requests` tells what was asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
LARGE_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".png", ".mp4", ".bin", ".pkl")
_wait = threading.Event().wait  # tests take time.sleep away from the clients


@dataclass(frozen=True)
class Blob:
    """The content of a file; large ones are known by sha256, small ones by git's sha1."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A state of a repository and what it came from."""

    title: str
    parent: str | None
    files: dict[str, Blob]

    @property
    def sha(self) -> str:
        listing = sorted((path, blob.oid) for path, blob in self.files.items())
        return hashlib.sha1(json.dumps([self.title, self.parent, listing]).encode()).hexdigest()


@dataclass
class Repository:
    """Commits by name of branch or tag, `main` first; `history` is in the order of the commits."""

    kind: str
    name: str
    private: bool
    history: list[Commit] = field(default_factory=list)
    references: dict[str, str] = field(default_factory=dict)

    def commit(self, title: str, files: dict[str, Blob], branch: str = "main") -> Commit:
        commit = Commit(title, self.references.get(branch), files)
        self.history.append(commit)
        self.references[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Commit | None:
        sha = self.references.get(revision, revision)
        return next((commit for commit in self.history if commit.sha == sha), None)

    @property
    def files(self) -> dict[str, bytes]:
        """What `main` holds."""
        commit = self.at("main")
        assert commit is not None
        return {path: blob.content for path, blob in commit.files.items()}


@dataclass
class Fault:
    """What goes wrong with requests whose 'METHOD /path' matches; `times` counts down, None is for ever.

    Attributes:
        status: the answer, with `headers`, in place of the right one.
        after: bytes of the request's body (PUT, POST) or of the answer's (GET) behind which the connection is cut.
        spoil: one bit of what is sent or received is another.
        pause: seconds before every kilobyte of an answer.
    """

    pattern: str
    times: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    spoil: bool = False
    pause: float = 0.0


class Hub:
    """The server; a context that serves until it is left."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.sent = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # -- for tests ----------------------------------------------------------------------------------------------------

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def plant(self, name: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repository:
        """A repository that holds exactly `files`, whatever their names are."""
        made = self.repositories.setdefault((kind, name), Repository(kind, name, private))
        blobs = {path: Blob(content, path.endswith(LARGE_SUFFIXES)) for path, content in files.items()}
        self.objects |= {blob.oid: blob.content for blob in blobs.values() if blob.large}
        made.commit("planted", blobs)
        return made

    def fail(self, pattern: str, **how: object) -> Fault:
        fault = Fault(pattern, **how)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def mend(self) -> None:
        self.faults.clear()

    def asked(self, pattern: str) -> list[str]:
        """The requests 'METHOD /path' that match."""
        return [request for request in self.requests if re.match(pattern, request)]

    def environment(self, cache: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment variables that lead the clients of a process here."""
        settings = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return settings | ({"HF_TOKEN": token} if token else {})

    def connect(self, monkeypatch: object, cache: Path, token: str | None = TOKEN) -> None:
        """Lead the clients of this process here, which read most of their settings when they were imported."""
        import datasets.config
        import huggingface_hub.hf_api
        import transformers.dynamic_module_utils
        import transformers.utils.hub
        from huggingface_hub import HfFileSystem, constants
        from huggingface_hub.utils import close_session

        HfFileSystem.clear_instance_cache()
        close_session()
        patch = monkeypatch.setattr  # type: ignore[attr-defined]
        template = f"{self.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch(constants, "HF_HUB_OFFLINE", False)  # tests run with the variable set, lest one reach the real Hub
        patch(datasets.config, "HF_HUB_OFFLINE", False)
        patch(constants, "ENDPOINT", self.address)
        patch(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch(constants, "HF_HUB_DISABLE_XET", True)
        patch(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch(huggingface_hub.hf_api.api, "endpoint", self.address)
        patch(transformers.utils.hub, "_hf_api", None)  # made at its first use, for the endpoint of then
        patch(datasets.config, "HF_ENDPOINT", self.address)
        patch(datasets.config, "HUB_DATASETS_URL", f"{self.address}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}")
        patch(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        patch(datasets.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache / "modules"))
        patch(time, "sleep", lambda seconds: self.slept.append(seconds))
        self.slept: list[float] = []
        if token:
            monkeypatch.setenv("HF_TOKEN", token)  # type: ignore[attr-defined]
        else:
            monkeypatch.delenv("HF_TOKEN", raising=False)  # type: ignore[attr-defined]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits 40 ms for the acknowledgement of its headers

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        request = f"{self.command} {self.route}"
        self.hub.requests.append(request)
        self.fault = self._next_fault(request)
        body = self._body()
        if body is None:  # cut on the way up
            self.close_connection = True
            return None
        if self.fault and self.fault.status:
            return self._send(self.fault.status, b'{"error": "as asked for"}', self.fault.headers)
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, request):
                return answer(self, body, *match.groups())
        return self._refuse(404, "EntryNotFound", f"no such route: {request}")

    def _next_fault(self, request: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times != 0 and re.match(fault.pattern, request):
                fault.times = None if fault.times is None else fault.times - 1
                return fault
        return None

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            length, chunks = 0, list(self._chunks())
            body = b"".join(chunks)
        else:
            length = int(self.headers.get("Content-Length") or 0)
            if length and self.fault and self.fault.after is not None:
                self.rfile.read(min(self.fault.after, length))
                return None
            body = self.rfile.read(length)
            if len(body) < length:  # the client went away
                return None
        return _spoiled(body) if body and self.fault and self.fault.spoil else body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    # -- what is asked ------------------------------------------------------------------------------------------------

    def _whoami(self, _: bytes) -> None:
        if self._may_write():
            self._json({"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def _validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            yaml.safe_load(found[1] if found else "")
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self._json({"errors": [], "warnings": []})

    def _create(self, body: bytes) -> None:
        if not self._may_write():
            return None
        asked = json.loads(body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'user'}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{'' if kind == 'model' else kind + 's/'}{name}"}
        if (kind, name) in self.hub.repositories:
            return self._json(url | {"error": "You already created this repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        made = Repository(kind, name, private)
        made.commit("initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        self.hub.repositories[kind, name] = made
        return self._json(url)

    def _information(self, _: bytes, kinds: str, name: str, revision: str | None = None) -> None:
        if found := self._find(kinds, name, revision):
            repository, commit = found
            siblings = [{"rfilename": path} for path in commit.files]
            facts = {"id": name, "sha": commit.sha, "private": repository.private, "siblings": siblings, "tags": []}
            self._json(facts | {"modelId": name, "downloads": 0, "likes": 0, "disabled": False, "gated": False})

    def _references(self, _: bytes, kinds: str, name: str) -> None:
        if found := self._find(kinds, name, None):
            listed = [
                {"name": one, "ref": f"refs/heads/{one}", "targetCommit": sha}
                for one, sha in found[0].references.items()
            ]
            self._json({"branches": listed, "tags": [], "converts": []})

    def _tree(self, _: bytes, kinds: str, name: str, revision: str, folder: str | None = None) -> None:
        if found := self._find(kinds, name, revision):
            recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
            entries: dict[str, dict[str, object]] = {}
            for path, blob in found[1].files.items():
                if folder and not path.startswith(f"{folder}/"):
                    continue
                parts = path.removeprefix(f"{folder}/" if folder else "").split("/")
                if len(parts) > 1 and not recursive:
                    above = f"{folder}/{parts[0]}" if folder else parts[0]
                    oid = hashlib.sha1(above.encode()).hexdigest()
                    entries[above] = {"type": "directory", "path": above, "oid": oid, "size": 0}
                else:
                    entries[path] = _entry(path, blob)
            if folder and not entries:
                return self._refuse(404, "EntryNotFound", f"no folder {folder}")
            self._json(list(entries.values()))
        return None

    def _paths(self, body: bytes, kinds: str, name: str, revision: str) -> None:
        if found := self._find(kinds, name, revision):
            if self.headers.get("Content-Type", "").startswith("application/json"):
                wanted = json.loads(body)["paths"]
            else:
                wanted = parse_qs(body.decode()).get("paths", [])
            files = found[1].files
            entries: list[dict[str, object]] = []
            for path in wanted:
                if path in files:
                    entries.append(_entry(path, files[path]))
                elif any(other.startswith(f"{path}/") for other in files):
                    entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
            self._json(entries)

    def _reference(self, body: bytes, kinds: str, name: str, what: str, label: str) -> None:
        if not self._may_write():
            return None
        asked = json.loads(body or b"{}")
        revision, named = (label, asked["tag"]) if what == "tag" else (asked.get("startingPoint") or "main", label)
        if found := self._find(kinds, name, revision):
            repository, commit = found
            if named in repository.references:
                return self._refuse(409, None, f"reference {named} already exists")
            repository.references[named] = commit.sha
            self._json({})
        return None

    def _preupload(self, body: bytes, kinds: str, name: str, revision: str) -> None:
        if self._may_write() and (found := self._find(kinds, name, revision)):
            answers = []
            for file in json.loads(body)["files"]:
                path = file["path"]
                text = b"\0" not in base64.b64decode(file["sample"]) and not path.endswith(LARGE_SUFFIXES)
                mode = "regular" if text and file["size"] < 10_000_000 else "lfs"
                known = found[1].files.get(path)
                answers.append(
                    {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known.oid if known else None}
                )
            self._json({"files": answers})

    def _batch(self, body: bytes, kinds: str | None, name: str) -> None:
        if self._may_write() and self._find(kinds or "models", name, None):
            objects = []
            for one in json.loads(body)["objects"]:
                told = {"oid": one["oid"], "size": one["size"]}
                if one["oid"] not in self.hub.objects:
                    address = f"{self.hub.address}/objects/{one['oid']}"
                    told["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
                objects.append(told)
            self._json({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, None, f"the content's sha256 is not {oid}")
        self.hub.objects[oid] = body
        return self._send(200, b"", {"ETag": f'"{oid}"'})

    def _verify(self, body: bytes, oid: str) -> None:
        held = self.hub.objects.get(oid)
        if held is None or len(held) != json.loads(body)["size"]:
            return self._refuse(404, None, f"object {oid} is not here, or of another size")
        return self._json({})

    def _commit(self, body: bytes, kinds: str, name: str, branch: str) -> None:
        if not self._may_write() or not (found := self._find(kinds, name, branch)):
            return None
        repository, before = found
        files, header = dict(before.files), {}
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            path = value.get("path", "")
            if ".." in path.split("/") or path.startswith("/"):
                return self._refuse(400, None, f"invalid path {path}")
            if key == "header":
                header = value
            elif key == "file":
                files[path] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self._refuse(400, None, f"{path}: object {value['oid']} was never uploaded")
                files[path] = Blob(self.hub.objects[value["oid"]], True)
            elif key == "deletedFile":
                del files[path]
            elif key == "deletedFolder":
                files = {other: blob for other, blob in files.items() if not other.startswith(f"{path.rstrip('/')}/")}
        if header.get("parentCommit") not in (None, before.sha):
            return self._refuse(412, None, "A commit has happened since. Please refresh and try again.")
        made = repository.commit(header["summary"], files, branch)
        url = f"{self.hub.address}/{'datasets/' if repository.kind == 'dataset' else ''}{name}/commit/{made.sha}"
        return self._json({"success": True, "commitUrl": url, "commitOid": made.sha, "hookOutput": ""})

    def _resolve(self, _: bytes, kinds: str | None, name: str, revision: str, path: str) -> None:
        if not (found := self._find(kinds or "models", name, revision)):
            return None
        commit, blob = found[1], found[1].files.get(path)
        if blob is None:
            return self._refuse(404, "EntryNotFound", f"no file {path}", {"X-Repo-Commit": commit.sha})
        content, status = blob.content, 200
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{blob.oid}"'}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self._send(status, content, headers)

    # -- and how it is answered ---------------------------------------------------------------------------------------

    def _find(self, kinds: str, name: str, revision: str | None) -> tuple[Repository, Commit] | None:
        repository = self.hub.repositories.get((kinds.rstrip("s/"), name))
        if repository is None or (repository.private and not self._is_owner()):
            self._refuse(404 if self._is_owner() else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.at(revision or "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self) -> bool:
        if not self._is_owner():
            self._refuse(401, None, "Invalid username or password.")
        return self._is_owner()

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        content = json.dumps({"error": message}).encode()
        kind = {"Content-Type": "application/json", "X-Error-Message": message}
        self._send(status, content, {**kind, **named, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.spoil and self.command == "GET":
            content = _spoiled(content)
        whole, step = len(content), 1024 if self.fault and self.fault.pause else max(1, len(content))
        if self.fault and self.fault.after is not None:
            content = content[: self.fault.after]
        for first in range(0, len(content), step):
            if self.fault and self.fault.pause:
                _wait(self.fault.pause)
            self.wfile.write(content[first : first + step])
        self.hub.sent += len(content)
        if len(content) < whole:
            self.close_connection = True


def _spoiled(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _entry(path: str, blob: Blob) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid[:40]}
    if blob.large:
        entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 130}
    return entry


_KINDS, _NAME, _REVISION = "(models|datasets)", "([^/]+/[^/]+)", "(refs/[^/]+/[^/]+|[^/]+)"
_API = f"/api/{_KINDS}/{_NAME}"
_ROUTES = [
    ("GET /api/whoami-v2", _Handler._whoami),
    ("POST /api/validate-yaml", _Handler._validate),
    ("POST /api/repos/create", _Handler._create),
    (f"GET {_API}(?:/revision/{_REVISION})?", _Handler._information),
    (f"GET {_API}/refs", _Handler._references),
    (f"GET {_API}/tree/{_REVISION}(?:/(.+))?", _Handler._tree),
    (f"POST {_API}/paths-info/{_REVISION}", _Handler._paths),
    (f"POST {_API}/(tag|branch)/(.+)", _Handler._reference),
    (f"POST {_API}/preupload/{_REVISION}", _Handler._preupload),
    (f"POST {_API}/commit/{_REVISION}", _Handler._commit),
    (f"POST /(datasets/)?{_NAME}\\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT /objects/([0-9a-f]{64})", _Handler._upload),
    ("POST /objects/([0-9a-f]{64})/verify", _Handler._verify),
    (f"(?:GET|HEAD) /(datasets/)?{_NAME}/resolve/{_REVISION}/(.+)", _Handler._resolve),
]
