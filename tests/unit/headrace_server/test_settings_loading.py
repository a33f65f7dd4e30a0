"""Reading the configuration: flags over environment over file, and one clear line for whatever is wrong."""

from pathlib import Path

import pytest

from headrace_server.errors import UsageError
from headrace_server.settings.access import AuthMode
from headrace_server.settings.loading import load_settings, scalar_keys
from headrace_server.settings.schema import EngineKind, Settings


def written(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `headrace.yaml` of the directory that the tests are started in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_without_any_configuration_everything_has_its_default() -> None:
    assert load_settings(environ={}) == Settings()


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    config = written(tmp_path, "server: {port: 1, metrics_port: 1, max_body_bytes: 1}")
    environ = {"HEADRACE_SERVER__PORT": "2", "HEADRACE_SERVER__METRICS_PORT": "2"}
    server = load_settings(config=config, environ=environ, flags={"server.port": 3}).server
    assert (server.port, server.metrics_port, server.max_body_bytes) == (3, 2, 1)


def test_a_variable_changes_its_key_and_leaves_its_neighbours(tmp_path: Path) -> None:
    config = written(tmp_path, "server: {tls: {cert_file: /c, key_file: /k}}")
    tls = load_settings(config=config, environ={"HEADRACE_SERVER__TLS__KEY_FILE": "/other"}).server.tls
    assert (tls.cert_file, tls.key_file) == (Path("/c"), Path("/other"))


def test_variables_hold_yaml() -> None:
    settings = load_settings(
        environ={
            "HEADRACE_SERVER__CORS__ALLOW_ORIGINS": '["https://a.example", "https://b.example"]',
            "HEADRACE_SERVER__HOST": "::1",
            "HEADRACE_SERVER__METRICS_PORT": "null",
            "HEADRACE_TELEMETRY__ACCESS_LOG": "false",
            "HEADRACE_AUTH__MODE": "none",
        }
    )
    assert settings.server.cors.allow_origins == ("https://a.example", "https://b.example")
    assert (settings.server.host, settings.server.metrics_port) == ("::1", None)
    assert settings.telemetry.access_log is False
    assert settings.auth.mode is AuthMode.NONE


@pytest.mark.parametrize("key", sorted(scalar_keys(Settings)))
def test_every_scalar_key_can_be_set_by_a_variable(key: str) -> None:
    name = "HEADRACE_" + key.upper().replace(".", "__")
    with pytest.raises(UsageError, match=key.replace(".", r"\.")):
        load_settings(environ={name: "{not: a, scalar: value}"})


@pytest.mark.parametrize(
    "name",
    [
        "HEADRACE_A__B",
        "HEADRACE_SERVER__PROT",
        "HEADRACE_SERVER__PORT__X",
        "HEADRACE_MODELS__0__ID",
        "HEADRACE_SERVER__TLS__",
        "HEADRACE___PORT",
    ],
)
def test_an_unknown_variable_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown variable {name}"):
        load_settings(environ={name: "1"})


@pytest.mark.parametrize("name", ["HEADRACE_PORT", "HEADRACE_SERVICE_HOST", "HEADRACE_PORT_8000_TCP", "OTHER__PORT"])
def test_a_variable_without_a_double_underscore_is_not_ours(name: str) -> None:
    assert load_settings(environ={name: "tcp://10.0.0.1:8000"}) == Settings()


def test_a_variable_that_is_no_yaml_is_named_without_its_value() -> None:
    with pytest.raises(UsageError, match="HEADRACE_SERVER__HOST") as caught:
        load_settings(environ={"HEADRACE_SERVER__HOST": "[secret"})
    assert "secret" not in str(caught.value)


class TestWhichFile:
    """The command line's file, else the environment's, else the one that lies here."""

    def test_the_default_file_is_read_where_there_is_one(self) -> None:
        Path("headrace.yaml").write_text("server: {port: 4}")
        assert load_settings(environ={}).server.port == 4

    def test_the_environments_file_replaces_the_default_file(self, tmp_path: Path) -> None:
        Path("headrace.yaml").write_text("server: {port: 4}")
        config = written(tmp_path, "server: {port: 5}")
        assert load_settings(environ={"HEADRACE_CONFIG": str(config)}).server.port == 5

    def test_the_command_lines_file_replaces_the_environments_file(self, tmp_path: Path) -> None:
        config = written(tmp_path, "server: {port: 6}")
        assert load_settings(config=config, environ={"HEADRACE_CONFIG": "/does/not/exist"}).server.port == 6

    def test_the_processs_own_environment_is_read_unless_another_is_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADRACE_SERVER__PORT", "7")
        assert load_settings().server.port == 7
        assert load_settings(environ={}).server.port == 8000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server: {prot: 1}", r"unknown key 'server\.prot'"),
        ("sever: {port: 1}", "unknown key 'sever'"),
        ("models: [{id: m, source: s, arguments: {dtpye: 1}}]", r"unknown key 'models\.0\.arguments\.dtpye'"),
        ("server: {port: 70000}", r"server\.port"),
        ("server: {port: [1]}", r"server\.port"),
        ("server: 17", r"configuration: server: "),
        ("auth: {mode: maybe}", r"auth\.mode"),
        ("models: {id: m}", r"configuration: models"),
        ("{1: 2}", "configuration"),
        ("- a list", "expected keys and values"),
        ("just text", "expected keys and values"),
        ("server: {port: 1", r"not YAML \(line 1"),
        ("\tserver: 1", "not YAML"),
        ("server: !!python/object/apply:os.getcwd []", "not YAML"),
        ("[" * 50_000, "not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        load_settings(config=written(tmp_path, text), environ={})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_no_configuration(tmp_path: Path, text: str) -> None:
    assert load_settings(config=written(tmp_path, text), environ={}) == Settings()


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    large = written(tmp_path, "#" * (1024**2 + 1))
    for path in (tmp_path / "missing.yaml", tmp_path, binary, large):
        with pytest.raises(UsageError) as caught:
            load_settings(config=path, environ={})
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_value_below_a_key_that_is_no_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="server"):
        load_settings(config=written(tmp_path, "server: 17"), environ={"HEADRACE_SERVER__PORT": "1"})


def test_a_secret_that_does_not_fit_is_not_shown(tmp_path: Path) -> None:
    text = "models: [{id: m, engine: upstream, upstream: {url: 'http://h', api_key: [s3cret]}}]"
    with pytest.raises(UsageError, match="api_key") as caught:
        load_settings(config=written(tmp_path, text), environ={})
    assert "s3cret" not in str(caught.value)


def test_a_whole_file_is_understood(tmp_path: Path) -> None:
    text = """
    server: {host: 0.0.0.0, port: 0}
    auth: {mode: none}
    models:
      - {id: chat, aliases: [gpt-4o], source: /models/chat, arguments: {max_model_len: 2048, dtype: bfloat16}}
      - {id: far, engine: upstream, upstream: {url: "unix:///run/x.sock", api_key: s3cret}}
      - {id: fake, engine: synthetic, synthetic: {ttft_ms: 5}}
    """
    settings = load_settings(config=written(tmp_path, text), environ={})
    chat, far, fake = settings.models
    assert (chat.id, chat.aliases, chat.arguments.max_model_len) == ("chat", ("gpt-4o",), 2048)
    assert (far.engine, fake.engine) == (EngineKind.UPSTREAM, EngineKind.SYNTHETIC)
    assert fake.synthetic.ttft_ms == 5
