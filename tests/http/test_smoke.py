"""The walk of one upload over the bare protocol."""

from tests.http.served import Served


async def test_an_upload_in_two_pieces_is_stored_and_served(served: Served) -> None:
    path = await served.create(12)

    assert (await served.patch(path, 0, b"hello ")).headers["upload-offset"] == "6"
    assert (await served.head(path)).headers["upload-offset"] == "6"
    done = await served.patch(path, 6, b"world!")

    assert done.status == 204
    assert (await served.request("GET", path)).body == b"hello world!"
