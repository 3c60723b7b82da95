"""The seed's curl command, as it stands."""

import json
import time
from pathlib import Path

import anyio
import pytest
from fake_device import FakeDevice
from test_http_tls import make_pki, server_context

from mgota.transports.http import Credentials, serve

pytestmark = [pytest.mark.asyncio, pytest.mark.program("curl")]

AUTH = Credentials(tokens="T", users={"ann": "secret"})


async def curl(*arguments: str) -> tuple[int, str]:
    """Exit code and output of curl; no proxy and no configuration file of the machine gets into its way."""
    command = ["curl", "-q", "--noproxy", "*", "-sS", "--max-time", "60", *arguments]
    done = await anyio.run_process(command, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def image(path: Path, size: int) -> str:
    path.write_bytes((b"\r\nfirmware\0" * (size // 11 + 1))[:size])
    return f"@{path}"


@pytest.mark.parametrize("size", [1, 1000, 1 << 20, (1 << 20) + 1, 5 << 20])
@pytest.mark.parametrize("options", [(), ("-H", "Expect: 100-continue"), ("-H", "Expect:"), ("--http1.0",)])
async def test_the_seeds_command_works_as_it_is(tmp_path: Path, size: int, options: tuple[str, ...]) -> None:
    fake = FakeDevice(room=8 << 20)
    body = image(tmp_path / "fw.signed.bin", size)
    async with serve(fake.device) as server:
        assert await curl(f"{server.url}/api/ota/update", "--data-binary", body, *options) == (0, "ok\n")
        await fake.reset.happened.wait()
    assert fake.staged == (tmp_path / "fw.signed.bin").read_bytes()


@pytest.mark.parametrize("size", [1000, 5 << 20])
async def test_with_a_token_and_with_a_user(tmp_path: Path, size: int) -> None:
    for options in (("-H", "Authorization: Bearer T"), ("-u", "ann:secret")):
        fake = FakeDevice(room=8 << 20)
        body = image(tmp_path / "fw.signed.bin", size)
        async with serve(fake.device, auth=AUTH) as server:
            assert await curl(f"{server.url}/api/ota/update", "--data-binary", body, *options) == (0, "ok\n")
            await fake.reset.happened.wait()
        assert fake.staged == (tmp_path / "fw.signed.bin").read_bytes()


@pytest.mark.parametrize("size", [1000, 5 << 20])
@pytest.mark.parametrize("options", [(), ("-H", "Expect:"), ("-H", "Authorization: Bearer wrong")])
async def test_a_refusal_is_read_and_not_a_reset(tmp_path: Path, size: int, options: tuple[str, ...]) -> None:
    fake = FakeDevice(room=8 << 20)
    body = image(tmp_path / "fw.signed.bin", size)
    async with serve(fake.device, auth=AUTH) as server:
        code, output = await curl(f"{server.url}/api/ota/update", "--data-binary", body, *options)
    assert code == 0
    assert output in {"authentication is required\n", "wrong credentials\n"}
    assert not fake.flash.opened


async def test_an_image_that_is_too_large_is_told_so(tmp_path: Path) -> None:
    async with serve(FakeDevice(room=1 << 20).device) as server:
        body = image(tmp_path / "fw.bin", 5 << 20)
        code, output = await curl("-w", "%{http_code}", f"{server.url}/api/ota/update", "--data-binary", body)
    assert (code, output) == (0, "image of 5242880 bytes does not fit: there is room for 1048576\n413")


async def test_no_second_is_lost_to_expect(tmp_path: Path) -> None:
    fake = FakeDevice(room=8 << 20)
    body = image(tmp_path / "fw.bin", 2 << 20)
    timing = "%{time_pretransfer} %{time_starttransfer}"
    async with serve(fake.device) as server:
        begun = time.monotonic()
        target = f"{server.url}/api/ota/update"
        # curl would wait 20 s here for the 100 that Mongoose never sends.
        await curl("-w", timing, "--expect100-timeout", "20", target, "--data-binary", body)
        assert time.monotonic() - begun < 19
    assert len(fake.staged) == 2 << 20


async def test_commit_rollback_and_status(tmp_path: Path) -> None:
    fake = FakeDevice()
    fake.prove(b"the one before")
    async with serve(fake.device) as server:
        code, output = await curl(f"{server.url}/api/ota/status")
        assert (code, json.loads(output)["state"]) == (0, "CONFIRMED")
        code, output = await curl("-I", f"{server.url}/api/ota/status")
        assert output.startswith("HTTP/1.1 200")
        assert await curl("-X", "POST", f"{server.url}/api/ota/commit") == (0, "ok\n")
        assert await curl("-d", "", f"{server.url}/api/ota/rollback") == (0, "ok\n")
        await fake.reset.happened.wait()


async def test_over_tls(tmp_path: Path) -> None:
    pki = make_pki(tmp_path)
    fake = FakeDevice(room=8 << 20)
    body = image(tmp_path / "fw.bin", 3 << 20)
    async with serve(fake.device, ssl_context=server_context(pki, mutual=True)) as server:
        target = f"https://localhost:{server.port}/api/ota/update"
        to = ("--cacert", str(pki.ca), "--resolve", f"localhost:{server.port}:127.0.0.1")
        code, _ = await curl(target, *to, "--data-binary", body)
        assert code != 0
        assert not fake.flash.opened
        assert await curl(target, *to, "--cert", str(pki.client), "--data-binary", body) == (0, "ok\n")
    assert fake.staged == (tmp_path / "fw.bin").read_bytes()


async def test_the_packed_image_of_the_readme(tmp_path: Path) -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    start = lines.index("gzip --keep fw.signed.bin")
    fake = FakeDevice(room=8 << 20)
    image(tmp_path / "fw.signed.bin", 3 << 20)
    async with serve(fake.device) as server:
        typed = "\n".join(lines[start : start + 2]).replace("http://127.0.0.1:8000", server.url)
        script = typed.replace("curl ", "curl -q --noproxy '*' -sS --max-time 60 ")
        done = await anyio.run_process(["sh", "-c", script], cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"ok\n", b"")
        await fake.reset.happened.wait()
    assert fake.staged == (tmp_path / "fw.signed.bin").read_bytes()
