"""A stand-in for the Hugging Face Hub on loopback: enough of its HTTP interface for real clients to create, push and
load.

Every push keeps its own commit, so that a test can see what a client did. Standard library only.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standin"


@dataclass
class Commit:
    """One commit: its title, and every file of the repository after it."""

    title: str
    files: dict[str, bytes]

    @property
    def oid(self) -> str:
        content = {path: hashlib.sha1(data).hexdigest() for path, data in self.files.items()}
        return hashlib.sha1(json.dumps([self.title, content], sort_keys=True).encode()).hexdigest()


@dataclass
class Repository:
    """
    As on the Hub, a new repository has one commit already. `commits` are of the branch "main", `branches` all others.
    """

    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {".gitattributes": b""})])
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def branch(self, revision: str) -> list[Commit] | None:
        return self.commits if revision == "main" else self.branches.get(revision)


class HubServer(ThreadingHTTPServer):
    """
    The server; `with HubServer() as hub` runs it in a thread.

    `repositories` maps ids to [`Repository`]; `environment` holds what a client process needs to talk to it. The owner
    "forbidden" may not be read or written to, for the owner "broken" the connection ends without an answer, "silent"
    waits for one until the server ends, and "status-429" is answered by that status.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.environment = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.ended.set()
        self.shutdown()
        self.server_close()


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


class Refused(Exception):
    """(status, value of X-Error-Code)"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, content=b"", status: int = 200, **headers: str) -> None:
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self) -> None:
        body, path = self.body(), unquote(urlsplit(self.path).path)
        if "/silent/" in path:
            self.server.ended.wait()
        if "/forbidden/" in path and self.command in ("GET", "HEAD"):
            self.answer({"error": "Forbidden"}, 403)
            return
        if status := re.search("/status-([0-9]+)/", path):
            self.answer({"error": "Status"}, int(status[1]))
            return
        for method, pattern, action in ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                try:
                    action(self, body, *match.groups())
                except Refused as refusal:
                    status, code = refusal.args
                    self.answer({"error": code}, status, X_Error_Code=code)
                return
        self.answer({"error": f"the stand-in does not know {self.command} {path}"}, 501)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str, write: bool = False) -> Repository:
        kind = self.server.datasets if urlsplit(self.path).path.startswith(("/datasets/", "/api/datasets/")) else None
        repository = (self.server.repositories if kind is None else kind).get(name)
        if repository is None or ((write or repository.private) and not self.authorized()):
            raise Refused(401 if not self.authorized() else 404, "RepoNotFound")
        return repository

    def commit_at(self, name: str, revision: str) -> Commit:
        repository = self.repository(name)
        if branch := repository.branch(revision):
            return branch[-1]
        for commit in [*repository.commits, *(commit for branch in repository.branches.values() for commit in branch)]:
            if revision == commit.oid:
                return commit
        raise Refused(404, "RevisionNotFound")

    def whoami(self, body):
        if not self.authorized():
            raise Refused(401, "Unauthorized")
        self.answer({"type": "user", "name": "someone", "orgs": []})

    def create(self, body):
        if not self.authorized():
            raise Refused(401, "Unauthorized")
        request = json.loads(body)
        owner = request.get("organization") or "someone"
        if owner == "broken":
            self.close_connection = True  # and no answer
            return
        if owner == "forbidden":
            raise Refused(403, "Forbidden")
        if owner.startswith("status-"):
            raise Refused(int(owner.removeprefix("status-")), "Status")
        name = f"{owner}/{request['name']}"
        private = bool(request.get("private")) or request.get("visibility") == "private"
        exists = name in self.server.repositories
        self.server.repositories.setdefault(name, Repository(private))
        self.answer({"url": f"{self.server.url}/{name}", "name": name}, 409 if exists else 200)

    def validate_yaml(self, body):
        self.answer({"errors": [], "warnings": []})

    def preupload(self, body, name, revision):
        self.repository(name, write=True)
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if is_lfs(file["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def lfs_batch(self, body, name):
        self.repository(name, write=True)
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "BadHash")
        self.server.blobs[oid] = body
        self.answer()

    def create_branch(self, body, name, revision):
        repository = self.repository(name, write=True)
        if repository.branch(revision) is not None:
            raise Refused(409, "BranchExists")
        repository.branches[revision] = list(repository.commits)
        self.answer(status=201)

    def commit(self, body, name, revision):
        repository = self.repository(name, write=True)
        pull_request = {}
        if "create_pr=1" in urlsplit(self.path).query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
            pull_request = {"pullRequestUrl": f"{self.server.url}/{name}/discussions/{number}"}
            before, revision = repository.branch(revision), f"refs/pr/{number}"
            repository.branches[revision] = list(before)
        branch = repository.branch(revision)
        if branch is None:
            raise Refused(404, "RevisionNotFound")
        files, title = dict(branch[-1].files), ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"UnknownOperation {key}")
        commit = Commit(title, files)
        branch.append(commit)
        url = f"{self.server.url}/{name}/commit/{commit.oid}"
        self.answer({"success": True, "commitOid": commit.oid, "commitUrl": url, **pull_request})

    def info(self, body, name, revision=None):
        commit = self.commit_at(name, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.repository(name).private
        self.answer({"id": name, "sha": commit.oid, "private": private, "tags": [], "siblings": siblings})

    def tree(self, body, name, revision, folder=None):
        entries = []
        at = self.commit_at(name, revision)
        if folder is not None and not any(path.startswith(f"{folder}/") for path in at.files):
            raise Refused(404, "EntryNotFound")
        commits = self.repository(name).branch(revision) or self.repository(name).commits
        for path, data in at.files.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            # The last commit that changed it.
            changed, before = at, [commit for commit in commits if commit is not at][::-1]
            for commit in before:
                if commit.files.get(path) != data:
                    break
                changed = commit
            date = "2026-01-01T00:00:00.000Z"
            entry["lastCommit"] = {"id": changed.oid, "title": changed.title, "date": date}
            if is_lfs(path):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self.answer(entries)

    def resolve(self, body, name, revision, path):
        commit = self.commit_at(name, revision)
        if path not in commit.files:
            raise Refused(404, "EntryNotFound")
        data = commit.files[path]
        headers = {"X_Repo_Commit": commit.oid, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if is_lfs(path):
            headers |= {"X_Linked_Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Linked_Size": str(len(data))}
        self.answer(data, **headers)


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", f"/api/models/{NAME}/branch/(.+)", Handler.create_branch),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("GET", f"/api/(?:models|datasets)/{NAME}", Handler.info),
    ("GET", f"/api/(?:models|datasets)/{NAME}/revision/(.+)", Handler.info),
    ("GET", f"/api/(?:models|datasets)/{NAME}/tree/(refs/pr/[0-9]+|[^/]+)(?:/(.+))?", Handler.tree),
    ("GET HEAD", f"(?:/datasets)?/{NAME}/resolve/(refs/pr/[0-9]+|[^/]+)/(.+)", Handler.resolve),
]
