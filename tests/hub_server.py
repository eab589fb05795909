"""A server on loopback that speaks the few calls of the Hugging Face hub that adapters need."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_secret"
REVISIONS = ("main", "v1")


class Hub(ThreadingHTTPServer):
    """What repositories hold, what was asked, and how the server misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Calls)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}
        #: Files of which only half comes: "cut" breaks the connection, "short" says that half is all.
        self.half: dict[str, str] = {}
        self.status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str) -> str:
        return hashlib.sha1(b"".join(self.repos[repo].values())).hexdigest()


class _Calls(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _say(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0].strip("/")
        hub.asked.append((self.command, path))
        if hub.status:
            return self._say(hub.status)
        repo, _, rest = path.removeprefix("api/models/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if repo not in hub.repos or (repo in hub.private and not self._known()):
            # It tells nobody of private ones.
            return self._say(404 if self._known() else 401, X_Error_Code="RepoNotFound")
        if not file:
            return self._say(200, {"id": repo, "private": repo in hub.private, "sha": hub.commit(repo)})
        if revision not in (*REVISIONS, hub.commit(repo)):
            return self._say(404, X_Error_Code="RevisionNotFound")
        content = hub.repos[repo].get(file)
        if content is None:
            return self._say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.commit(repo))
        facts = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": hub.commit(repo)}
        how = hub.half.get(file)
        if how == "short":
            content = content[: len(content) // 2]
        elif how == "cut" and self.command == "GET":
            facts["Content-Length"] = str(len(content))
            content, self.close_connection = content[: len(content) // 2], True
        return self._say(200, content, **facts)

    def do_POST(self):
        hub, path, body = self.server, self.path.partition("?")[0].strip("/"), self._body()
        hub.asked.append(("POST", path))
        if not self._known() and path != "api/validate-yaml":
            return self._say(401, {"error": "who are you?"})
        if path == "api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        if path == "api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo in hub.repos:
                return self._say(409, {"url": f"{hub.url}/{repo}", "error": "it is there"})
            hub.repos[repo] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(repo)
            return self._say(200, {"url": f"{hub.url}/{repo}", "name": repo})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/store/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            return self._say(200, {"transfer": "basic", "objects": objects})
        repo, _, what = path.removeprefix("api/models/").partition("/preupload/")
        if what:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith("safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self._say(200, {"files": files})
        repo = path.removeprefix("api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.repos[repo][value["path"]] = hub.stored[value["oid"]]
        commit = hub.commit(repo)
        return self._say(200, {"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def do_PUT(self):
        content = self._body()
        self.server.stored[hashlib.sha256(content).hexdigest()] = content
        self._say(200)


@contextmanager
def hub():
    """A hub that answers while the body runs."""
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
