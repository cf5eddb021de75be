import pytest

from fat_ray.records.redact import scrub, secrets_in


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "my_credential"])
def test_values_of_secret_variables_are_scrubbed(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "abcdefgh12345678")
    assert scrub("failed with abcdefgh12345678.") == "failed with [redacted]."


def test_the_longer_of_two_secrets_is_scrubbed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh12345678")
    assert scrub("x abcdefgh12345678 y") == "x [redacted] y"


def test_short_values_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("TASK", "segmentation")
    assert scrub("true segmentation") == "true segmentation"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pw@host/path", "https://[redacted]@host/path"),
        ("s3://bucket/key at a@b.c", "s3://bucket/key at a@b.c"),
        ("GET /x?api_key=abc&n=3", "GET /x?api_key=[redacted]&n=3"),
        ("loss=0.3 key frames", "loss=0.3 key frames"),
    ],
)
def test_credentials_in_addresses_are_scrubbed(text: str, clean: str) -> None:
    assert scrub(text) == clean


@pytest.mark.parametrize("name", ["api_key", "apikey", "hf_token", "token", "Password", "db_password", "client_secret", "aws_secret_key"])
def test_fields_named_like_secrets_are_found(name: str) -> None:
    problems = secrets_in({"task": {"settings": [{name: "x"}]}}, "")
    assert [problem.field for problem in problems] == [f"task.settings.0.{name}"]
    assert problems[0].value is None


@pytest.mark.parametrize("name", ["pad_token", "max_tokens", "tokenizer", "key", "monkey", "secretary", "passwords_file"])
def test_other_fields_are_not(name: str) -> None:
    assert secrets_in({name: "x"}, "") == []


def test_numbers_and_empty_values_are_no_secrets() -> None:
    assert secrets_in({"token": 3, "password": "", "secret": None}, "") == []
