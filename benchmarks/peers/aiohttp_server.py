"""The same work on aiohttp, as its documentation leads one to write it: the body is streamed, files are for threads."""

import asyncio

from aiohttp import web
from stored import BLOCK, StoredImage, command_line


def application() -> web.Application:
    """One route: the update."""
    path, key = command_line()

    async def update(request: web.Request) -> web.Response:
        size = request.content_length
        if not size:
            raise web.HTTPLengthRequired
        image = await asyncio.to_thread(StoredImage, path, size)
        try:
            async for chunk in request.content.iter_chunked(BLOCK):
                await asyncio.to_thread(image.write, chunk)
            if not await asyncio.to_thread(image.good, key):
                raise web.HTTPUnprocessableEntity
        finally:
            image.close()
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_post("/api/ota/update", update)
    return app


async def main() -> None:
    """Serve for ever."""
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
