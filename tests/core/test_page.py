"""The updater page as one document: what is put in, what is left out, and what its policy allows."""

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from mgota.core.page import compose
from mgota.errors import ConfigError

HTML = """\
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'self'">
<meta name="mgota-api" content="">
<link rel="stylesheet" href="page.css">
<body>
<script src="far.min.js"></script>
<script src="page.js"></script>
"""
PARTS = {"page.css": "body { margin: 0 }\n", "page.js": 'say("hello")\n', "far.min.js": "far()\r\n"}


def hash_of(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def test_every_part_is_in_the_document_and_allowed_by_its_hash() -> None:
    page = compose(HTML, PARTS)
    text = page.body.decode()
    assert "src=" not in text
    assert "href=" not in text
    for element, allowed in (("script", "script-src"), ("style", "style-src")):
        found = [hash_of(part) for part in re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)]
        assert found
        assert f"{allowed} {' '.join(found)};" in page.policy
    assert "far()\n</script>" in text  # a browser would read \r\n as \n, and hash that
    assert "unsafe" not in page.policy
    assert page.policy.startswith("default-src 'none'; ")
    inside, frames = page.policy.rsplit("; ", 1)
    assert frames == "frame-ancestors 'none'"  # which is not obeyed inside a document
    assert f'content="{inside}"' in text


def test_a_part_that_is_missing_leaves_its_element_out() -> None:
    text = compose(HTML, {"page.css": "", "page.js": "x"}).body.decode()
    assert "far" not in text
    assert text.count("<script>") == 1


def test_of_a_device_it_speaks_with_that_device_and_on_its_own_with_brokers() -> None:
    own, device = compose(HTML, PARTS), compose(HTML, PARTS, api='/api/"ota"')
    assert "connect-src ws: wss:;" in own.policy
    assert "connect-src 'self';" in device.policy
    assert b'<meta name="mgota-api" content="">' in own.body
    assert b'<meta name="mgota-api" content="/api/&quot;ota&quot;">' in device.body


@pytest.mark.parametrize("text", ["a = '</script>'", "a = '</ScRiPt'", "<!-- x"])
def test_what_would_end_a_script_early_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"page\.js"):
        compose(HTML, {"page.js": text})
    assert text in compose(HTML, {"page.css": text}).body.decode()


def test_what_would_end_a_style_early_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"page\.css"):
        compose(HTML, {"page.css": "/* </Style> */"})
    assert b"</style>" in compose(HTML, {"page.js": "a = '</style>'"}).body


@pytest.mark.parametrize("line", [0, 1])
def test_a_page_of_another_version_is_refused(line: int) -> None:
    lines = HTML.splitlines(keepends=True)
    for html in ("".join(lines[:line] + lines[line + 1 :]), HTML + lines[line]):
        with pytest.raises(ConfigError, match="version"):
            compose(html, PARTS)
