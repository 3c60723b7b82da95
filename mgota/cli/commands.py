"""The commands by name, each in a module of its own that is imported when it is needed."""

import importlib
import logging
import sys

import click

_COMMANDS = {
    "keygen": ("mgota.cli.keys", "Make a pair of keys."),
    "sign": ("mgota.cli.sign", "Attach a signature to a firmware."),
    "verify": ("mgota.cli.verify", "Check an image's signature."),
    "info": ("mgota.cli.verify", "Tell what can be seen of an image."),
    "manifest": ("mgota.cli.manifest", "Write, sign and verify what is served beside an image."),
    "push": ("mgota.cli.push", "Push an image to one device, or to many."),
    "status": ("mgota.cli.control", "Tell what a device is at."),
    "commit": ("mgota.cli.control", "Make the image on trial permanent."),
    "rollback": ("mgota.cli.control", "Return to the previous image."),
    "pull": ("mgota.cli.pull", "Fetch an update for a device on this machine."),
    "serve": ("mgota.cli.serve", "Be a virtual device."),
    "publish": ("mgota.cli.publish", "Serve manifests and images, and show which devices asked."),
    "page": ("mgota.cli.page", "Write the updater page for devices behind an MQTT broker, as one file."),
    "run": ("mgota.cli.run", "Start the program in the running slot, and watch it."),
    "install": ("mgota.cli.install", "Install an image on this machine."),
    "doctor": ("mgota.cli.doctor", "Check this machine and its configuration file."),
    "targets": ("mgota.cli.targets", "List the chips, their flash memories, and how safe their swap is."),
    "provision": ("mgota.cli.provision", "Write a device's first image."),
    "demo": ("mgota.cli.demo", "Watch a device being updated, rolled back, and refusing bad images."),
}


class LazyGroup(click.Group):
    """A group whose help needs no command's module."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """The names, in the order of a life: keys, image, device."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  the same
        """The command of that name, imported now."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  the same
        """The list in the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        metadata = importlib.import_module("importlib.metadata")  # slow to load, and needed here only
        click.echo(f"mgota {metadata.version('mgota')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Tell the version.")
@click.option("-v", "--verbose", is_flag=True, help="Log to stderr what happens, and tracebacks.")
def group(verbose: bool) -> None:
    """Firmware updates that never brick.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage.
    """
    if verbose:
        log_to_stderr(logging.DEBUG)
    else:
        logging.getLogger("mgota").addHandler(logging.NullHandler())  # else Python would print warnings by itself


def log_to_stderr(level: int) -> None:
    """Log lines for a person. Who was there first decides: `-v` before a command.

    Args:
        level: the least that is told.
    """
    logger = logging.getLogger("mgota")
    if any(isinstance(handler, logging.StreamHandler) for handler in logger.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level)
