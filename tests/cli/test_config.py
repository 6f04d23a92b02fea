"""`autoplay-rag.toml`: its settings, its errors, and its precedence."""

import re
import tomllib
from pathlib import Path

import pytest

from autoplay_rag.cli.app import run
from autoplay_rag.cli.config import Config, load_config
from autoplay_rag.cli.options import default_journal
from autoplay_rag.devserver import LocalConnector
from autoplay_rag.errors import ConfigurationError
from autoplay_rag.payloads import SummaryPayload

ROOT = Path(__file__).parents[2]
URL = "https://connector.example/stream/acme"


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "AUTOPLAY_APP_UNKEY_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("store = 'chroma:a'\nbatch-window = 1", 2, "did you mean batch_window?"),
        ("# a\n\nnonsense = true", 3, "unknown key 'nonsense'; known keys: url, token"),
        ("rebuild = true", 1, "use --rebuild on the command line"),
        ("[ingest]\nstore = 'chroma:a'", 1, "unknown key 'ingest'"),
        ("store = 'chroma:a'\nbatch_window = 'soon'", 2, "batch_window must be a number"),
        ("batch_window = true", 1, "batch_window must be a number"),
        ("max_attempts = 1.5", 1, "max_attempts must be a whole number"),
        ("keep_payloads = 1", 1, "keep_payloads must be true or false"),
        ("retention_days = 'week'", 1, "retention_days must be a number, or {"),
        ("retention_days = { actions = true }", 1, "retention_days must be a number, or {"),
        ("collection = ''", 1, "collection must be text"),
        ("store = { env = 'X' }", 1, "store must be text"),
        ("url = 'x'\ntoken = 7", 2, 'token must be text or { env = "NAME" }'),
        ("url = 'x'\ntoken = { evn = 'X' }", 2, "token must be text or"),
        ("store = 'chroma:a'\ntoken = 'uk_secret'", 2, "a token needs a url beside it"),
        ("token = { env = 'X', default = 'uk_secret' }", 1, "token must be text or"),
        ("streams = 3", 1, "write [[streams]]"),
        ("[streams]\nurl = 'x'", 1, "write [[streams]]"),
        ("[[streams]]\nurl = 'x'\n[[streams]]\ntoken = 'y'", 3, "a stream needs a url"),
        ("[[streams]]\nurl = 'x'\n\n[[streams]]\nurl = 'y'\nname = 'z'", 6, "unknown key 'name'"),
        (
            "token = 'x'\n[[streams]]\nurl = 'x'",
            1,
            "token belongs below [[streams]] if the file has one",
        ),
        ("journal = '''\na\n'''\ncollection = [\n1,\n2]", 4, "collection must be text"),
    ],
)
def test_errors_name_file_line_and_key(text, line, says):
    with pytest.raises(ConfigurationError) as error:
        Config(Path("mine.toml"), text)
    assert str(error.value).startswith(f"mine.toml, line {line}: ")
    assert says in str(error.value)
    assert "uk_secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"store = \n", "line 1"),
        (b"a = 1\na = 2\n", "line 2"),
        ("collection = 'caf\u00e9'".encode("latin-1"), "is not UTF-8"),
        ("collection = 'a'".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_file_that_is_not_toml_is_wrong_usage(tmp_path, capsys, content, says):
    (tmp_path / "autoplay-rag.toml").write_bytes(content)
    for command in (["ingest", URL], ["search", "who?"], ["status"]):
        assert run(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: autoplay-rag.toml")
        assert says in line


def test_a_file_with_a_mark_at_its_start_is_read(tmp_path):
    (tmp_path / "autoplay-rag.toml").write_text("collection = 'a'", encoding="utf-8-sig")
    assert load_config().get("collection") == "a"


def test_a_file_that_is_named_must_be_there(capsys):
    assert run(["ingest", URL, "--config", "absent.toml"]) == 1
    assert capsys.readouterr().err == "error: absent.toml: No such file or directory\n"
    assert load_config().get("store") is None


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("\nbatch_window = -1", 2, "batch_window must be at least 0, not -1"),
        ("\n\nstore = 'pg:x'", 3, "store must be chroma:PATH"),
        ("embedder = 'bert'", 1, "embedder must be local, local:int8 or openai:MODEL"),
        ("idle_seconds = nan", 1, "idle_seconds must be at least 0"),
        ("durability = 'most'", 1, "durability must be 'normal' or 'full'"),
        ("max_batch_actions = 0", 1, "max_batch_actions must be at least 1"),
        ("redact = 'names'", 1, "redact must be 'pii', not 'names'"),
        ("retention_days = 0", 1, "retention_days must be above 0 or None, not 0"),
        ("\nretention_days = { clicks = 7 }", 2, "retention_days key must be 'actions'"),
        ("retention_days = { chat = 0 }", 1, "retention_days of 'chat' must be above 0, not 0"),
        ("remember_keys_days = -1", 1, "remember_keys_days must be at least 0, not -1"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_its_line(tmp_path, capsys, text, line, says):
    (tmp_path / "autoplay-rag.toml").write_text(text)
    assert run(["ingest", URL]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: autoplay-rag.toml, line {line}: {says}")
    assert len(error.splitlines()) == 1


def test_an_option_that_cannot_work_is_not_blamed_on_the_file(tmp_path, capsys):
    (tmp_path / "autoplay-rag.toml").write_text("batch_window = 3\nstore = 'chroma:a'")
    assert run(["ingest", URL, "--batch-window", "-1"]) == 2
    assert capsys.readouterr().err == "error: batch_window must be at least 0, not -1.0\n"
    assert run(["ingest", URL, "--store", "pg:x"]) == 2
    assert capsys.readouterr().err == (
        "error: store must be chroma:PATH or postgresql://USER@HOST/DATABASE, not 'pg:x'\n"
    )
    assert run(["ingest", URL, "--retention-days", "0"]) == 2
    expected = "error: retention_days must be above 0 or None, not 0.0\n"
    assert capsys.readouterr().err == expected
    assert run(["ingest", URL, "--remember-keys-days", "-1"]) == 2
    expected = "error: remember_keys_days must be at least 0, not -1.0\n"
    assert capsys.readouterr().err == expected
    assert run(["ingest", URL, "--redact", "all"]) == 2
    assert capsys.readouterr().err == "error: redact must be 'pii', not 'all'\n"


@pytest.mark.parametrize("url", ["ftp://connector.example/x", "http://", "acme"])
def test_a_url_that_cannot_work_is_named_with_its_line(tmp_path, capsys, url):
    (tmp_path / "autoplay-rag.toml").write_text(f"[[streams]]\nurl = '{url}'\n")
    assert run(["ingest"]) == 2
    assert capsys.readouterr().err.startswith("error: autoplay-rag.toml, line 2: the connector's")


def test_secrets_come_from_the_environment(monkeypatch):
    text = f"[[streams]]\nurl = '{URL}'\n\ntoken = {{ env = 'ACME_TOKEN' }}\n"
    config = Config(Path("mine.toml"), text)
    monkeypatch.delenv("ACME_TOKEN", raising=False)
    with pytest.raises(ConfigurationError) as error:
        config.streams()
    assert str(error.value) == ("mine.toml, line 4: the environment variable ACME_TOKEN is not set")
    assert config.streams(tokens=False)[0].token == ""
    assert config.streams(["https://another.example/stream/x"]) == []
    monkeypatch.setenv("ACME_TOKEN", "uk_secret")
    (stream,) = config.streams()
    assert (stream.url, stream.token) == (URL, "uk_secret")
    assert "uk_secret" not in repr(stream)


def test_paths_start_at_the_folder_of_the_file(tmp_path):
    text = "store = 'chroma:data/chroma'\njournal = 'mine.db'"
    config = Config(tmp_path / "settings" / "a.toml", text)
    assert config.store == f"chroma:{tmp_path}/settings/data/chroma"
    assert config.journal == tmp_path / "settings" / "mine.db"
    absolute = Config(tmp_path / "a.toml", "store = 'chroma:/data'\njournal = '/j.db'")
    assert (absolute.store, absolute.journal) == ("chroma:/data", Path("/j.db"))
    assert default_journal(Path("data")) == Path("data-journal.db")


def test_the_page_names_every_key_and_its_examples_can_be_read():
    page = (ROOT / "docs" / "recipes" / "command.md").read_text()
    examples = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        assert Config(Path("a.toml"), example)
        assert tomllib.loads(example)
    with pytest.raises(ConfigurationError) as error:
        Config(Path("a.toml"), "nonsense = 1")
    known = str(error.value).partition("known keys: ")[2].split(", ")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == known[:-3]
    assert known[-3:] == ["streams", "pulls", "kafka_client"]


def test_properties_of_kafkas_client_may_have_dots(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", "s3cret")
    text = """
        kafka = "broker.test:9092"
        [kafka_client]
        security.protocol = "SASL_SSL"
        "sasl.username" = "ann"
        sasl.password = { env = "MY_PASSWORD" }
        session.timeout.ms = 9000
    """
    assert Config(Path("a.toml"), text).kafka_client == {
        "security.protocol": "SASL_SSL",
        "sasl.username": "ann",
        "sasl.password": "s3cret",
        "session.timeout.ms": 9000,
    }
    with pytest.raises(ConfigurationError, match="write \\[kafka_client\\] above"):
        Config(Path("a.toml"), "kafka_client = 1")
    monkeypatch.delenv("MY_PASSWORD")
    with pytest.raises(ConfigurationError, match="line 6: the environment variable MY_PASSWORD"):
        _ = Config(Path("a.toml"), text).kafka_client


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_command_takes_its_settings_from_the_file(ended, tmp_path):
    payload = SummaryPayload("acme", "s1", "The user could not pay by credit card.", 2, 1020.0)
    (tmp_path / "settings").mkdir()
    async with LocalConnector([payload], token="uk_right") as connector:
        text = (
            f"url = '{connector.url}'\ntoken = {{ env = 'ACME_TOKEN' }}\n"
            "store = 'chroma:kept'\ncollection = 'acme'\nidle_seconds = 3\nbatch_window = 0\n"
        )
        for path, options in (("autoplay-rag.toml", ()), ("settings/a.toml", ("--config",))):
            (tmp_path / path).write_text(text)
            named = (*options, path) if options else ()
            code, out, err = await ended("ingest", *named, ACME_TOKEN="uk_right")
            assert (code, out) == (0, "received 1 · pending 0 · stored 1\n")
            assert f"settings: {path}\n" in err
            assert (tmp_path / path).parent.joinpath("kept-journal.db").exists()
        # The command line has precedence.
        code, _, err = await ended("ingest", "--token", "uk_wrong", "--store", "chroma:other")
        assert code == 1
        assert "error: 401" in err
        assert "uk_" not in err
    assert (tmp_path / "other-journal.db").exists()
    code, out, _ = await ended("search", "whose payment failed?")
    assert (code, out.count("s1")) == (0, 1)
    code, out, _ = await ended("status")
    assert (code, "stored" in out) == (0, True)
    code, out, _ = await ended("search", "whose payment failed?", "--collection", "empty-one")
    assert (code, out) == (0, "")


def test_the_register_of_erasures_is_beside_the_settings(tmp_path):
    path = tmp_path / "autoplay-rag.toml"
    path.write_text('erasure_register = "kept/erasures"\nsummaries = "replace"\n')
    file = load_config(path)
    assert file.erasure_register == tmp_path / "kept" / "erasures"
    assert file.pipeline == {
        "erasure_register": tmp_path / "kept" / "erasures",
        "summaries": "replace",
    }
