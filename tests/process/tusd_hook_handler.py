"""A hook handler as the documentation of tusd describes one ("Customization via hooks"). It knows nothing of tusd_py.

It answers POST requests, or, as a program in a directory, what it reads from standard input.
"""

from __future__ import annotations

import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any


def handle(hook_request: dict[str, Any]) -> dict[str, Any]:
    """Return the hook response for a hook request."""
    hook_response: dict[str, Any] = {"HTTPResponse": {"Header": {}}}
    upload = hook_request["Event"]["Upload"]
    if hook_request["Type"] == "pre-create":
        metadata = upload["MetaData"]
        if "filename" not in metadata:
            hook_response["RejectUpload"] = True
            hook_response["HTTPResponse"]["StatusCode"] = 400
            hook_response["HTTPResponse"]["Body"] = "no filename provided"
            hook_response["HTTPResponse"]["Header"]["X-Some-Header"] = "yes"
        else:
            upload_id = f"upload-{secrets.token_hex(16)}"
            sender = hook_request["Event"]["HTTPRequest"]["Header"].get("X-Project", ["none"])[0]
            hook_response["ChangeFileInfo"] = {
                "ID": upload_id,
                "MetaData": {"filename": metadata["filename"], "keep": metadata.get("keep", ""), "project": sender},
                "Storage": {"Path": f"./{sender}/{upload_id}/{metadata['filename']}"},
            }
            hook_response["HTTPResponse"]["Header"]["X-Size"] = str(upload["Size"])
    if hook_request["Type"] == "pre-terminate" and upload["MetaData"]["keep"] == "yes":
        hook_response["RejectTermination"] = True
        hook_response["HTTPResponse"]["StatusCode"] = 403
        hook_response["HTTPResponse"]["Body"] = "this one stays"
    return hook_response


class HTTPHookHandler(BaseHTTPRequestHandler):
    """Receives the hook requests of tusd."""

    def do_POST(self) -> None:
        hook_request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(handle(hook_request)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    json.dump(handle(json.load(sys.stdin)), sys.stdout)
