"""A hub on this machine: the parts of the HTTP API that huggingface_hub 2.4 calls to push and to pull."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_test"
LFS_FROM = 10_000  # bytes; the real hub goes by size and by the endings in .gitattributes


class Hub:
    """Repositories in memory: ``repositories[id]`` is a list of commits, ``(sha, {path: bytes})``."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.large: dict[str, bytes] = {}
        self.claimed_sizes: dict[str, int] = {}
        self.private: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        """A commit that adds to what is there."""
        commits = self.repositories.setdefault(repo, [])
        content = {**(commits[-1][1] if commits else {}), **files}
        sha = hashlib.sha1(repr((repo, len(commits), sorted(content.items()))).encode()).hexdigest()
        commits.append((sha, content))
        return sha

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for sha, files in reversed(self.repositories[repo]):
            if revision in ("main", sha):
                return sha, files
        return None

    def fetched(self) -> set[str]:
        """The paths of files that were downloaded."""
        return {
            path.split("/", 5)[5] for method, path in self.requests if method == "GET" and "/resolve/" in path
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, body = self.start()
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.fail(401, "Invalid username or password.")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo in self.hub.repositories:
                there = {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}
                return self.send(409, json.dumps(there).encode())
            self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
            if wanted.get("visibility") == "private":
                self.hub.private.add(repo)
            return self.reply({"url": f"{self.hub.url}/{repo}", "id": repo})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.reply({"objects": [self.large_upload(one) for one in json.loads(body)["objects"]]})
        _, _, kind, owner, name, verb, _ = path.split("/")
        assert kind == "models"
        repo = f"{owner}/{name}"
        if verb == "preupload":
            files = json.loads(body)["files"]
            return self.reply({"files": [self.upload_mode(file) for file in files]})
        assert verb == "commit"
        return self.commit(repo, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        path, body = self.start()
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self.fail(400, "wrong checksum")
        self.hub.large[oid] = body
        return self.reply({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _ = self.start()
        parts = path.strip("/").split("/")
        about = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if about else parts[:2])
        hidden = repo in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repo not in self.hub.repositories or hidden:
            return self.fail(401 if hidden else 404, "Repository not found", "RepoNotFound")
        revision = parts[5] if about and len(parts) > 5 else "main" if about else parts[3]
        found = self.hub.at(repo, revision)
        if found is None:
            return self.fail(404, "Invalid rev id", "RevisionNotFound")
        sha, files = found
        if about:
            siblings = [
                {"rfilename": name, "size": self.hub.claimed_sizes.get(name, len(data)), "blobId": "0" * 40}
                for name, data in files.items()
            ]
            return self.reply({"_id": "1", "id": repo, "sha": sha, "siblings": siblings})
        name = "/".join(parts[4:])
        if name not in files:
            return self.fail(404, "Entry not found", "EntryNotFound")
        data = files[name]
        return self.send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    # What the answers consist of

    def validate(self, card: str) -> None:
        header = yaml.safe_load(card.split("---")[1])
        wrong = [
            {"message": f'"{key}" is missing or wrong'}
            for key, type_ in (("license", str), ("library_name", str), ("tags", list))
            if not isinstance(header.get(key), type_)
        ]
        self.send(400 if wrong else 200, json.dumps({"errors": wrong, "warnings": []}).encode())

    def upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= LFS_FROM else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def large_upload(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = {}
        assert lines[0]["key"] == "header"
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert (line["key"], value["encoding"]) == ("file", "base64")
                files[value["path"]] = base64.b64decode(value["content"])
        sha = self.hub.add(repo, files)
        self.reply({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    # HTTP

    def start(self) -> tuple[str, bytes]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.headers.get("Transfer-Encoding") != "chunked":
            return path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return path, body

    def reply(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode())

    def fail(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, json.dumps({"error": message}).encode(), headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThisHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
