"""Updates over HTTP: the server side.

async with serve(device, auth=Credentials(tokens=token)) as server:          a server of its own
async with serve(device, auth=…, app=handler) as server:                      beside the application's handler
async with serve(Gateway({"main": device, "mcu": other}), auth=…) as server:  several (`mgota.gateway`)
await OtaHttp(device, auth=…).handle(accepted_socket)                         one connection, handed over
"""

from mgota.core.access import Credentials
from mgota.core.pace import Limits
from mgota.transports.http.endpoint import OtaHttp
from mgota.transports.http.message import Request, Response
from mgota.transports.http.server import Server, serve

__all__ = ["Credentials", "Limits", "OtaHttp", "Request", "Response", "Server", "serve"]
