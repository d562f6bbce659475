"""A Hugging Face Hub on this machine: the routes that uploading and downloading an SAE call."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Keeps ``files`` (bytes by repository and path) and the ``requests`` that it answered."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def local_hub():
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def handle_any(self):
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if self.command in method and found:
                answer(self, body, *found.groups())
                return
        self.answer(404, b"{}", **{"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def repository(self, body, repo):
        if repo in self.server.files:
            self.answer_json({"id": repo, "modelId": repo, "siblings": [], "private": False})
        else:
            self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def create(self, body):
        given = json.loads(body)
        repo = "/".join(filter(None, [given.get("organization"), given["name"]]))
        self.server.files[repo] = {}
        self.answer_json({"url": f"{self.server.endpoint}/{repo}", "id": repo})

    def check_yaml(self, body):
        self.answer_json({"errors": [], "warnings": []})

    def upload_modes(self, body, repo):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer_json({"files": files})

    def large_files(self, body, repo):
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/blobs/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self.answer_json({"transfer": "basic", "objects": objects})

    def take_blob(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self.answer(200)

    def commit(self, body, repo):
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.server.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.server.files[repo][value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.endpoint}/{repo}/commit/{COMMIT}"
        self.answer_json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def download(self, body, repo, path):
        content = self.server.files.get(repo, {}).get(path)
        if content is None:
            self.answer(404, **{"X-Error-Code": "EntryNotFound"})
        else:
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, content, ETag=etag, **{"X-Repo-Commit": COMMIT})


REPO = r"([^/]+/[^/]+)"
ROUTES = (
    ("GET", f"/api/models/{REPO}", Handler.repository),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.check_yaml),
    ("POST", f"/api/models/{REPO}/preupload/main", Handler.upload_modes),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.large_files),
    ("PUT", "/blobs/(.+)", Handler.take_blob),
    ("POST", f"/api/models/{REPO}/commit/main", Handler.commit),
    ("GET HEAD", f"/{REPO}/resolve/main/(.+)", Handler.download),
)
