"""The text that is printed in the terminal once the server is ready."""

from __future__ import annotations


def render_banner(url: str, operations_url: str | None, *, version: str, page: bool) -> str:
    """Return where everything is and what to try; `page` tells whether there is an upload page."""
    root = url.split("/", 3)
    origin = "/".join(root[:3])
    lines = [
        "",
        f"  tusd_py {version} is ready.",
        "",
        *([f"    upload page {origin}/"] if page else []),
        f"    uploads     {url}",
        f"    downloads   {origin}/download/<id>",
        f"    status      {origin}/api/v1/uploads/<id>",
    ]
    if operations_url:
        lines.append(f"    operations  {operations_url}/readyz, /metrics")
    lines += [
        "",
        "  Try it:",
        f"    curl -i -X POST {url} -H 'Tus-Resumable: 1.0.0' -H 'Upload-Length: 6' \\",
        "         -H 'Content-Type: application/offset+octet-stream' --data-binary 'hello!'",
        "",
        "  Stop it with Ctrl-C.",
        "",
    ]
    return "\n".join(lines)
