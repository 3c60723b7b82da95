"""The configuration file: what it may say, and every fault with its line."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.config import Config, Fault, parse_config, read_config
from mgota.core.toml_lines import line_of, lines_of
from mgota.errors import ConfigError

FULL = """\
[device]
id = "gateway-17"
hardware = "gw-rev3"
floor = "1.2.0"
window = 90
tries = 2
on_unknown = "confirm"
data = "/data/mgota"
reboot = ["systemctl", "reboot"]

[keys]
images = ["/etc/mgota/public.pem"]
trailer = "mgsg"
manifests = ["/etc/mgota/a.pem", "/etc/mgota/b.pem"]
threshold = 2
allow_plain_manifest = true

[slots]
kind = "block"
a = "PARTUUID=11111111-01"
b = "/dev/mmcblk0p3"

[selector]
kind = "uboot"
convention = "bootcount"
config = "/etc/fw_env.config"
variable = "slot"
a = "2"
b = "3"

[state]
kind = "register"
path = "/dev/mem"
address = 0x5C005000
raw = true

[watchdog]
kind = "device"
path = "/dev/watchdog0"
limit = 14.5

[health]
command = ["curl", "-fs", "http://127.0.0.1/health"]
consecutive = 3

[http]
host = "0.0.0.0"
port = 8080
token_file = "/etc/mgota/token"
allow_hosts = ["gateway.example"]
page = true

[pull]
url = "https://updates.example/fw.json"
interval = 600
policy = "pinned=1.4"

[mqtt]
url = "mqtts://broker.example/fleet/gateway-17"
version = "5"

[history]
path = "/var/lib/mgota/history"
updates = 10
webhook = "https://example/hook"
"""

BOARD = """\
[device]
data = "/data"
[slots]
kind = "block"
a = "PARTLABEL=root-a"
b = "PARTLABEL=root-b"
[selector]
kind = "grub"
"""

LEAST = '[slots]\ndirectory = "/var/lib/app"\n'


def test_a_whole_file() -> None:
    config = read_config(FULL, "mgota.toml")
    assert (config.device.window, config.device.tries, config.device.on_unknown) == (90.0, 2, "confirm")
    assert isinstance(config.device.window, float)
    assert (config.keys.threshold, config.keys.manifests[1]) == (2, "/etc/mgota/b.pem")
    assert (config.slots.kind, config.slots.directory, config.slots.b) == ("block", None, "/dev/mmcblk0p3")
    assert config.selector
    assert (config.selector.kind, config.selector.convention, config.selector.b) == ("uboot", "bootcount", "3")
    assert (config.state.kind, config.state.address, config.state.raw) == ("register", 0x5C005000, True)
    assert (config.watchdog.path, config.watchdog.limit) == ("/dev/watchdog0", 14.5)
    assert config.health
    assert (config.health.command[0], config.health.consecutive, config.health.interval) == ("curl", 3, 5.0)
    assert (config.device.reboot, config.data) == (("systemctl", "reboot"), "/data/mgota")
    assert config.http
    assert (config.http.port, config.http.allow_hosts, config.http.page) == (8080, ("gateway.example",), True)
    assert config.pull
    assert (config.pull.policy, config.pull.interval) == ("pinned=1.4", 600.0)
    assert config.mqtt
    assert config.mqtt.version == "5"
    assert config.history.webhook == "https://example/hook"


def test_what_is_left_out_has_its_default_or_is_off() -> None:
    config = read_config(LEAST, "mgota.toml")
    assert config == Config(slots=config.slots)
    assert (config.slots.kind, config.selector, config.watchdog.kind) == ("files", None, "none")
    assert (config.http, config.pull, config.mqtt, config.data) == (None, None, None, "/var/lib/app")
    assert read_config(BOARD + "[http]\n", "mgota.toml").http is not None
    assert read_config(BOARD + "[history]\nwebhook = 'https://x/'\n", "mgota.toml").data == "/data"


def faults(text: str) -> list[Fault]:
    config, found = parse_config(text)
    assert (config is None) == bool(found)
    return list(found)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[device]\nwindow = '60'", "device.window: this has to be a number"),
        ("[device]\nwindow = inf", "device.window: this has to be a number"),
        ("[device]\nwindow = true", "device.window: this has to be a number"),
        ("[device]\ntries = 1.0", "device.tries: this has to be a whole number"),
        ("[device]\ntries = true", "device.tries: this has to be a whole number"),
        ("[device]\nid = 7", "device.id: this has to be a text in quotes"),
        ("[device]\non_unknown = 'ignore'", "device.on_unknown: this has to be one of refuse, confirm"),
        ("[device]\non_unknown = []", "device.on_unknown: this has to be one of refuse, confirm"),
        ("[device]\nwindow = 0", "device.window: a trial needs more than 0 seconds"),
        ("[device]\ntries = 0", "device.tries: a trial needs at least one try"),
        ("[device]\ndevice.window = 3", "device.device: there is no such key; there are id"),
        ("[keys]\nimages = 'a.pem'", "keys.images: this has to be a list of texts in quotes"),
        ("[keys]\nimages = ['a.pem', 1]", "keys.images: this has to be a list of texts in quotes"),
        ("[keys]\nthreshold = 2", "keys.threshold: 2 of 0 keys can never sign"),
        ("[keys]\nthreshold = 0", "keys.threshold: 0 of 0 keys can never sign"),
        ("[keys]\nallow_plain_manifest = 1", "keys.allow_plain_manifest: this has to be true or false"),
        ("[device]\nfloor = 'one'", "device.floor: one is no version"),
        ("[device]\nhardware = 'a b'", "device.hardware: a hardware id is"),
        ("[device]\nreboot = []", "device.reboot: a machine is started again by some command"),
        ("[selector]\nkind = 'script'", "selector.command: script needs command"),
        ("[selector]\ncommand = ['x']", "selector: kind is missing"),
        ("[selector]\nkind = 'uboot'\ncommand = ['x']", "selector.command: command does not belong to uboot"),
        ("[selector]\nkind = 'uboot'\nvariable = 'x'", "selector.variable: the convention rauc has"),
        ("[selector]\nkind = 'uboot'\nattempts = 16", "selector.attempts: a slot gets between 1 and 15"),
        ("[selector]\nkind = 'uboot'\nattempts = 0", "selector.attempts: a slot gets between 1 and 15"),
        ("[selector]\nkind = 'uboot'\nb = 'B'", "selector.b: the bootloader knows both slots, by two names"),
        ("[selector]\nkind = 'grub'\na = 'A'\nb = 'A'", "selector.b: the bootloader knows both slots, by two names"),
        ("[selector]\nkind = 'efi'\na = '0001'\nb = '02'", "selector.b: this has to be four hexadecimal digits"),
        ("[selector]\nkind = 'tryboot'\na = '0'\nb = '3'", "selector.a: this has to be the number"),
        ("[selector]\nkind = 'script'\ncommand = ['x']\ntimeout = 0", "selector.timeout: a script needs more"),
        ("[state]\nkind = 'mtd'", "state.path: mtd needs path"),
        ("[state]\nkind = 'cells'\npath = '/e'\nsize = 256\noffset = -1", "state.offset: offset is not negative"),
        ("[state]\nraw = true", "state.raw: raw does not belong to file"),
        ("[watchdog]\nkind = 'device'\nlimit = 0.9", "watchdog.limit: a watchdog counts at least 1 second"),
        ("[watchdog]\nlimit = 5", "watchdog.limit: limit does not belong to none"),
        ("[watchdog]\nkind = 'systemd'\nalways = true", "watchdog.always: always does not belong to systemd"),
        (
            "[watchdog]\nkind = 'device'\nalways = true\ntimeout = 0.9",
            "watchdog.timeout: a watchdog counts at least 1 second",
        ),
        ("[watchdog]\nkind = 'device'\ntimeout = 31", "watchdog.timeout: outside of trials it is armed only if"),
        ("[program]\ngrace = -1", "program.grace: this is no time to wait"),
        ("[health]\ncommand = []", "health.command: there is nothing to look at"),
        ("[health]\ntimeout = 3", "health.command: there is nothing to look at"),
        ("[health]\nurl = 'ftp://x/'", "health.url: a URL begins with"),
        ("[health]\nurl = 'http://x/'\ncacert = 'ca.pem'", "health.cacert: cacert needs a url with https://"),
        ("[health]\nmqtt = true\ncacert = 'ca.pem'", "health.cacert: cacert needs a url with https://"),
        ("[health]\nmqtt = true\ntimeout = 0", "health.timeout: timeout has more than 0 seconds"),
        ("[history]\nwebhook = 'http://x/'\ncacert = 'ca.pem'", "history.cacert: cacert needs a webhook"),
        ("[health]\ncommand = ['x']\ninterval = 0", "health.interval: interval has more than 0 seconds"),
        ("[health]\ncommand = ['x']\nconsecutive = 0", "health.consecutive: a device is healthy after"),
        ("[http]\nport = 65536", "http.port: there is no port 65536"),
        ("[http]\nport = -1", "http.port: there is no port -1"),
        ("[http]\nclient_ca = 'ca.pem'", "http.cert: key_file and client_ca need cert"),
        ("[pull]\ninterval = 5", "pull: url is missing"),
        ("[pull]\nurl = 'x'\ninterval = 0", "pull.interval: the interval of polls is at least one second"),
        ("[pull]\nurl = 'x'\njitter = 1.1", "pull.jitter: the jitter of polls is a part of their interval"),
        ("[pull]\nurl = 'x'\npolicy = 'older'", "pull.policy: 'older' is no policy: newer, different"),
        ("[pull]\nurl = 'x'\nkey_file = 'k'", "pull.cert: key_file needs cert"),
        ("[mqtt]\nurl = 'mqtt://x/y/z'\nkey_file = 'k'", "mqtt.cert: key_file needs cert"),
        ("[mqtt]\nurl = 'http://x'", "mqtt.url: a broker's URL begins with mqtt:// or mqtts://"),
        ("[history]\nupdates = 0", "history.updates: a history has 1 to 1000 updates"),
        ("[history]\nwebhook = 'x'", "history.webhook: a URL begins with"),
        ("[htpp]\nport = 1", "htpp: there is no such key; there are device, keys, slots"),
        ("http = 8000", "http: this has to be a section"),
    ],
)
def test_a_fault_is_told_with_its_line(line: str, said: str) -> None:
    text = f"# a comment\n{line}\n{LEAST}" if line.startswith("http") else f"{LEAST}\n# a comment\n{line}\n"
    (fault,) = faults(text)
    assert fault.text.startswith(said)
    key = said.partition(":")[0].rpartition(".")[2]
    at = text.splitlines()[fault.line - 1]
    assert at.startswith(
        (key, f"[{key}]", "device.window", "[http]", "[state]", "[selector]", "[pull]", "[mqtt]", "[health]")
    ), at
    with pytest.raises(ConfigError, match=rf"^mgota\.toml:{fault.line}: "):
        read_config(text, "mgota.toml")


def test_one_thing_to_look_at_is_enough() -> None:
    ways = "[mqtt]\nurl = 'mqtt://h/a/b'\n[pull]\nurl = 'https://h/fw.json'\n"
    for one in ("command = ['x']", "url = 'http://x/'", "url = 'https://x/'\ncacert = 'ca'", "mqtt = true",
                "same_version = true"):  # fmt: skip
        assert read_config(f"{BOARD}{ways}[health]\n{one}\n", "mgota.toml").health
    told = "[history]\nmqtt = true\nquery = true\nwebhook = 'https://x/'\ncacert = 'ca'\n"
    assert read_config(BOARD + ways + told, "mgota.toml").history.reports
    assert not read_config(BOARD + ways, "mgota.toml").history.reports


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ("", "slots.directory: files needs directory"),
        ("directory = '/d'\na = 'x'", "slots.a: a does not belong to files"),
        ("kind = 'block'\na = 'x'", "slots.b: block needs b"),
        ("kind = 'block'\na = 'x'\nb = 'x'", "slots.b: the two slots are the same"),
        ("kind = 'block'\na = 'x'\nb = 'y'\ndirectory = 'd'", "slots.directory: directory does not belong to block"),
    ],
)
def test_slots_are_of_one_kind(slots: str, said: str) -> None:
    assert [fault.text for fault in faults(f"[slots]\n{slots}\n")] == [said]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (LEAST + "[http]\n", 3, "http: this is for a board"),
        (LEAST + "[selector]\nkind = 'grub'\n", 3, "selector: this is for a board"),
        (LEAST + "[state]\npath = '/x'\n", 3, "state: slots that are files have theirs beside them"),
        (LEAST + "[watchdog]\n\nkind = 'systemd'\n", 5, "watchdog.kind: systemd's watchdog is fed by the launcher"),
        (LEAST + "[watchdog]\nkind = 'device'\n", 3, "watchdog.always: say always = true: trials of slots"),
        (LEAST + "[device]\n\ndata = '/x'\n", 5, "device.data: this is for a board"),
        (BOARD + "[program]\ncommand = ['x']\n", 9, "program: a program is for slots that are files"),
        (BOARD + "[state]\n# in\nkind = 'uboot'\n", 11, "state.kind: a state in uboot's environment needs"),
        (BOARD.replace("data =", "id ="), 1, "state: where is the boot record? Say state.path, or device.data"),
        (
            BOARD.replace("data =", "id =") + "[state]\nkind = 'register'\naddress = 4\n",
            9,
            "state: where is the boot record? Say state.record",
        ),
        (BOARD.partition("[selector]")[0], 3, "slots: block slots need a section [selector]"),
        (
            BOARD.replace("data =", "id =") + "[state]\npath = '/x'\n[history]\nwebhook = 'https://x/'\n",
            12,
            "history.webhook: reports need a history",
        ),
        (
            BOARD.replace("data =", "id =")
            + "[state]\npath = '/x'\n[mqtt]\nurl = 'mqtt://h/a/b'\n[history]\nmqtt = true\n",
            14,
            "history.mqtt: reports need a history",
        ),
        (BOARD + "[health]\nmqtt = true\n", 10, "health.mqtt: this needs a section [mqtt]"),
        (BOARD + "[health]\nsame_version = true\n", 10, "health.same_version: this needs a section [pull]"),
        (BOARD + "[history]\nmqtt = true\n", 10, "history.mqtt: this needs a section [mqtt]"),
        (BOARD + "[history]\nquery = true\n", 10, "history.query: this needs a section [pull]"),
        (LEAST + "[history]\nmqtt = true\n", 4, "history.mqtt: this is for a board"),
        (LEAST + "[history]\nquery = true\n", 4, "history.query: this is for a board"),
    ],
)
def test_sections_fit_together(text: str, line: int, said: str) -> None:
    (fault,) = faults(text)
    assert (fault.line, fault.text[: len(said)]) == (line, said)


@pytest.mark.parametrize("slots", [LEAST, BOARD])
@pytest.mark.parametrize("timeout", ["", "timeout = 1", "timeout = 90"])
def test_a_watchdog_may_be_fed_always(slots: str, timeout: str) -> None:
    config = read_config(f"{slots}[watchdog]\nkind = 'device'\nalways = true\n{timeout}\n", "x")
    assert config.watchdog.always
    assert config.watchdog.timeout == float(timeout.rpartition(" ")[2] or 30)


@pytest.mark.parametrize(
    "state", ["kind = 'grub'", "path = '/x'", "kind = 'register'\naddress = 4", "kind = 'mtd'\npath = '/dev/mtd3'"]
)
def test_a_record_has_a_place_on_a_board(state: str) -> None:
    assert faults(f"{BOARD}[state]\n{state}\n") == []


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    found = faults("[slots]\nkind = 'block'\na = 1\n[device]\nwindw = 3\ntries = 0\n")
    assert [(fault.line, fault.text.partition(":")[0]) for fault in found] == [(3, "slots.a"), (5, "device.windw")]
    assert [(fault.line, fault.text) for fault in faults("")] == [(1, "slots is missing")]


@pytest.mark.parametrize(
    ("text", "line"), [("[slots\n", 1), ("[slots]\na = \n", 2), ("\n\nx = 'y", 3), ("a=1\na=2", 2)]
)
def test_what_is_no_toml_is_told_with_its_line(text: str, line: int) -> None:
    (fault,) = faults(text)
    assert fault.line == line
    assert fault.text.startswith("this is no TOML: ")


def test_lines_are_found_where_a_person_looks() -> None:
    text = '# [not]\n[a]\n"b c" = 1\n\'d\'.e = 2\n[ f . "g" ]  # h\nh = """\n[i]\nj = 1\n"""\n'
    text += "k = { l = 1 }\n[[m]]\nn = 1\n"
    lines = lines_of(text)
    assert lines == {
        ("a",): 2,
        ("a", "b c"): 3,
        ("a", "d"): 4,
        ("a", "d", "e"): 4,
        ("f", "g"): 5,
        ("f", "g", "h"): 6,
        ("f", "g", "k"): 10,
        ("m",): 11,
        ("m", "n"): 12,
    }
    assert line_of(lines, ("f", "g", "k", "l")) == 10
    assert line_of(lines, ("nowhere",)) == 1
    assert lines_of("[a..b]\n") == {("a..b",): 1}


@given(
    st.text(max_size=80) | st.lists(st.sampled_from([*FULL.splitlines(), "= 1", "[slots]", "x = {}"])).map("\n".join)
)
def test_any_text_is_a_configuration_or_faults(text: str) -> None:
    config, found = parse_config(text)
    assert (config is None) == bool(found)
    assert all(1 <= fault.line <= max(len(text.splitlines()), 1) for fault in found)
