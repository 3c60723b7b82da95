"""`mgota page`: the updater page as one file, to be opened from a disk or put on any web server.

It reaches devices through an MQTT broker over WebSockets; over HTTP each device serves a page of its own.
"""

from pathlib import Path

import click

from mgota.cli.options import FILE
from mgota.flash.files import replace_file
from mgota.transports.http.page import page_of_its_own


@click.command()
@click.argument("file", type=FILE, default="updater.html")
def page(*, file: Path) -> None:
    """Write the updater page for devices behind an MQTT broker to FILE (updater.html), all in one.

    It loads nothing from elsewhere. FILE#broker=wss://broker.example:8084/mqtt&root=mgota fills its form in.
    """
    replace_file(file, iter([page_of_its_own()]))
    click.echo(str(file))
