"""One function says where storage is; a store never carries its keys about."""

import pickle

import pytest

from cluster.errors import UsageError
from cluster.settings import StorageSettings
from cluster.storage import ObjectStore, storage_environment
from cluster.storage.environment import endpoint

LOCAL = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:8333/",
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "UNRELATED": "x",
}


def test_the_local_server_for_boto3_pyarrow_mlflow_and_ray():
    made = storage_environment(LOCAL)
    assert made["AWS_DEFAULT_REGION"] == made["AWS_REGION"] == "us-east-1"
    assert made["AWS_ENDPOINT_URL_S3"] == made["MLFLOW_S3_ENDPOINT_URL"] == "http://127.0.0.1:8333"
    assert made["AWS_SECRET_ACCESS_KEY"] == "very-secret"
    assert made["AWS_EC2_METADATA_DISABLED"] == "true"
    assert made["MANTA_STORAGE__BUCKET"] == "manta"
    assert "UNRELATED" not in made


def test_aws_itself_with_a_role_needs_no_endpoint_and_keeps_the_metadata_service():
    made = storage_environment({"AWS_REGION": "eu-central-1", "AWS_ROLE_ARN": "arn:x"})
    assert made["AWS_DEFAULT_REGION"] == "eu-central-1"
    assert made["AWS_ROLE_ARN"] == "arn:x"
    assert not {"AWS_ENDPOINT_URL_S3", "AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID"} & made.keys()


def test_it_is_stable():
    once = storage_environment(LOCAL)
    assert storage_environment(once) == once


@pytest.mark.parametrize("url", ["127.0.0.1:8333", "localhost", "ftp://host", "http://"])
def test_a_url_that_is_none_is_told(url):
    with pytest.raises(UsageError, match=r"AWS_ENDPOINT_URL=.*http://host:port"):
        storage_environment({"AWS_ENDPOINT_URL": url})


def test_an_endpoint_is_told_without_its_password():
    assert str(endpoint({"AWS_ENDPOINT_URL": "http://user:word@host:1/x"})) == "http://host:1/x"


def test_a_pickled_store_holds_no_keys(monkeypatch):
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore("bucket", StorageSettings())
    data = pickle.dumps(store)
    assert b"very-secret" not in data
    assert "very-secret" not in repr(store)
    assert pickle.loads(data).uri("a/b") == "s3://bucket/a/b"


def test_keys_and_uris_are_inverse(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    store = ObjectStore("bucket", StorageSettings())
    assert store.key(store.uri("a/b")) == store.key("a/b") == "a/b"
    with pytest.raises(UsageError, match=r"s3://other/a is not in s3://bucket"):
        store.key("s3://other/a")
