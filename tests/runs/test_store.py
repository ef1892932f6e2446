"""Stages in a store: a real S3 server, real faults of the line to it, a folder on a mounted path."""

from __future__ import annotations

import resource
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from c3po_utils.runs import check
from c3po_utils.runs.config import load_config
from c3po_utils.runs.files import DamagedFile, read_json, read_jsonl, write_jsonl
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.remote import Remote, StoreError
from c3po_utils.runs.stage import MANIFEST, Stage, pack
from c3po_utils.runs.store import Store
from tests.object_store import Line, client

s3fs = pytest.importorskip("s3fs")
ROWS = 200


@pytest.fixture
def impatient(monkeypatch):
    """Clients that do not try again."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def make(run: Path, name: str = "sample/tea", **identity) -> Path:
    """A finished stage with a file that its manifest knows, one that it does not, and one in a folder below."""
    with Stage(run / name, {"seed": 0} | identity, "rows.jsonl") as stage:
        seed = stage.identity["seed"]
        write_jsonl(stage.path("rows.jsonl"), ({"seed": seed, "text": "tea " * 50, "id": n} for n in range(ROWS)))
        stage.path("log.txt").write_text(f"made for {identity}\n")
        stage.path("drafts").mkdir(exist_ok=True)
        stage.path("drafts/1.txt").write_text("a")
        stage.path("empty.txt").touch()
    return run / name


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish(store: Store, folder: Path) -> bool:
    return store.publish(folder, store.manifests([folder]).get(folder))


def fetch(store: Store, name: str = "sample/tea") -> Path:
    (folder, theirs), *_ = store.manifests([store.run / name]).items()
    store.fetch(folder, theirs)
    return folder


@pytest.mark.parametrize("where", ["s3", "path"])
def test_a_stage_is_the_same_on_another_machine(where, url, tmp_path):
    url = url if where == "s3" else str(tmp_path / "mounted")
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    made = make(here.run)
    assert publish(here, made)
    assert not publish(here, made)  # it is there
    arrived = fetch(there)
    assert contents(arrived) == contents(made)
    assert Stage(arrived, {"seed": 0}, "rows.jsonl").done


@pytest.mark.parametrize("where", ["s3", "path"])
def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(where, url, tmp_path):
    remote = Remote(f"{url if where == 's3' else tmp_path}/try[2]*")
    remote.write("driver/a?.json", b"{}")
    assert remote.read_all(["driver/a?.json", "driver/none"]) == {"driver/a?.json": b"{}"}
    assert remote.all_names() == remote.names("driver") == ["driver/a?.json"]


def test_what_is_here_is_not_fetched_again_and_what_was_damaged_here_is(url, tmp_path):
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    publish(here, make(here.run))
    arrived = fetch(there)
    times = {path: path.stat().st_mtime_ns for path in arrived.rglob("*")}
    fetch(there)
    assert {path: path.stat().st_mtime_ns for path in arrived.rglob("*")} == times
    rows = (arrived / "rows.jsonl").read_bytes()
    (arrived / "rows.jsonl").write_bytes(rows[:-5] + b"0000\n")
    fetch(there)
    assert (arrived / "rows.jsonl").read_bytes() == rows
    assert (arrived / "log.txt").stat().st_mtime_ns == times[arrived / "log.txt"]


@pytest.mark.parametrize("heavy", [True, False])
def test_a_large_file_of_another_stage_does_not_pass_for_this_ones_by_its_size(heavy, monkeypatch, tmp_path):
    for module in ("stage", "store"):
        monkeypatch.setattr(f"c3po_utils.runs.{module}.SMALL", 1000)
    here, there = (Store(str(tmp_path / "mounted"), tmp_path / name) for name in ("here", "there"))
    made, old = make(here.run, seed=1), make(there.run, seed=2)
    assert (made / "rows.jsonl").stat().st_size == (old / "rows.jsonl").stat().st_size
    publish(here, made)
    there.fetch(old, there.manifests([old])[old], heavy)
    assert Stage(old, {"seed": 1}, "rows.jsonl").done == heavy
    fetch(there)
    assert contents(old) == contents(made)
    times = (old / "rows.jsonl").stat().st_mtime_ns
    fetch(there)
    assert (old / "rows.jsonl").stat().st_mtime_ns == times


def test_a_stage_that_is_made_anew_takes_the_old_ones_place(url, tmp_path):
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    publish(here, make(here.run))
    fetch(there)
    assert publish(here, make(here.run, seed=1))
    assert contents(fetch(there)) == contents(here.run / "sample/tea")


def test_a_packed_stage_takes_the_place_of_one_that_is_not_and_the_other_way_round(url, tmp_path):
    for number, (packed, seed) in enumerate([(True, 1), (False, 2)]):
        make(tmp_path / "a", seed=seed)
        if packed:
            pack(tmp_path / "a")
        publish(Store(url, tmp_path / "a"), tmp_path / "a" / "sample/tea")
        if not number:
            make(tmp_path / "b", seed=0)
        store = Store(url, tmp_path / "b")
        folder = fetch(store)
        place = store.remote.path("sample/tea")
        assert {path.removeprefix(f"{place}/") for path in store.remote.fs.find(place)} == contents(folder).keys()
        assert Stage(folder, {"seed": seed}, "rows.jsonl").done
        assert read_jsonl(folder / "rows.jsonl")[0]["seed"] == seed
        assert contents(folder) == contents(tmp_path / "a" / "sample/tea")


def test_an_unfinished_stage_is_not_published(url, tmp_path):
    store = Store(url, tmp_path / "here")
    stage = Stage(store.run / "sample/tea", {}, "rows.jsonl")
    with stage:
        write_jsonl(stage.path("rows.jsonl"), [{}])
        assert not publish(store, stage.folder)
    (stage.folder / MANIFEST).write_text('{"status": "running"}')
    assert not publish(store, stage.folder)
    assert not store.manifests([stage.folder])


def test_a_stage_that_is_damaged_here_is_not_published(url, tmp_path):
    store = Store(url, tmp_path / "here")
    made = make(store.run)
    (made / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DamagedFile, match=r"rows.jsonl: damaged: expected 200 rows.* found 1 rows"):
        publish(store, made)
    assert not store.manifests([made])


def test_a_server_that_dies_in_mid_upload_leaves_no_stage_and_the_next_upload_mends_it(
    s3_port, url, connect, impatient, tmp_path
):
    line = Line(s3_port)
    connect(line.port)
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    made = make(here.run)
    before = contents(made)
    line.cut_after(20_000)  # within rows.jsonl
    with pytest.raises(StoreError, match=f"^{url}/sample/tea/rows.jsonl: .*run again when it can be reached"):
        publish(here, made)
    with pytest.raises(StoreError, match=f"^{url}"):
        there.manifests([there.run / "sample/tea"])
    line.mend()
    assert not there.manifests([there.run / "sample/tea"])
    assert contents(made) == before
    assert publish(here, made)
    assert contents(fetch(there)) == before
    line.cut()


def test_one_that_dies_while_a_stage_is_replaced_leaves_neither(s3_port, url, connect, impatient, tmp_path):
    line = Line(s3_port)
    connect(line.port)
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    publish(here, make(here.run))
    theirs = here.manifests([here.run / "sample/tea"])
    made = make(here.run, seed=1)
    line.cut_after(20_000)
    with pytest.raises(StoreError):
        here.publish(made, theirs[made])
    line.mend()
    assert not there.manifests([there.run / "sample/tea"])
    assert publish(here, made)
    assert contents(fetch(there)) == contents(made)
    line.cut()


def test_one_that_dies_in_mid_download_leaves_the_stage_that_was_here(s3_port, url, connect, impatient, tmp_path):
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    make(there.run, seed=7)
    before = contents(there.run / "sample/tea")
    publish(here, make(here.run))
    ((folder, theirs),) = there.manifests([there.run / "sample/tea"]).items()
    line = Line(s3_port)
    connect(line.port)
    away = Store(url, tmp_path / "there")
    line.cut_after(20_000)
    with pytest.raises(StoreError, match=f"^{url}/sample/tea/"):
        away.fetch(folder, theirs)
    assert contents(folder) == before
    assert Stage(folder, {"seed": 7}, "rows.jsonl").done


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:-4] + b'0"}\n'])
def test_an_object_that_was_changed_in_the_store_is_named_and_nothing_here_is_lost(damage, s3_port, url, tmp_path):
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    make(there.run, seed=7)
    before = contents(there.run / "sample/tea")
    publish(here, make(here.run))
    name = f"{url}/sample/tea/rows.jsonl"
    fs = s3fs.S3FileSystem()
    fs.pipe_file(name, damage(fs.cat_file(name)))
    with pytest.raises(DamagedFile, match=f"^{name}: damaged in the store: expected .* bytes with hash .*, found"):
        fetch(there)
    assert contents(there.run / "sample/tea") == before


def test_a_bucket_that_is_missing_is_named(connect, tmp_path):
    store = Store("s3://nobody-made-this/run", tmp_path / "here")
    with pytest.raises(StoreError, match=r"^s3://nobody-made-this/run/.*bucket does not exist"):
        publish(store, make(store.run))
    assert Stage(store.run / "sample/tea", {"seed": 0}, "rows.jsonl").done


def test_a_wrong_key_is_told_without_showing_it(s3_port, url, connect):
    port = s3_port
    iam, every = client("iam", port), '{"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
    iam.create_user(UserName="me")
    iam.put_user_policy(
        UserName="me", PolicyName="all", PolicyDocument=every.replace("{", '{"Version": "2012-10-17", ', 1)
    )
    key = iam.create_access_key(UserName="me")["AccessKey"]
    check_keys(port, "0")
    try:
        mine = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        connect(port, **mine)
        Remote(url).write("a", b"1")
        for wrong in ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, {"AWS_ACCESS_KEY_ID": "AKIAWRONG"}):
            connect(port, **mine | wrong)
            for use in (lambda: Remote(url).write("a", b"2"), lambda: Remote(url).read("a")):
                with pytest.raises(StoreError, match=rf"^{url}/a: .*AWS_SECRET_ACCESS_KEY") as raised:
                    use()
                assert key["SecretAccessKey"] not in str(raised.value)
                assert "wrong-secret" not in str(raised.value)
        connect(port, **mine)
        assert Remote(url).read("a") == b"1"
    finally:
        check_keys(port, "inf")


def check_keys(port: int, after: str) -> None:
    """Have the server look at keys after so many more requests."""
    body = {"data": after.encode(), "headers": {"Content-Type": "text/plain"}, "method": "POST"}
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset-auth", **body)).close()


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("s3://me:password@bucket/run", "parameter 'store' holds what looks like a key or a password"),
        ("bucket/run", "store: expected a URL such as s3://bucket/run .* or an absolute path, found 'bucket/run'"),
        ("s4://bucket/run", "store: expected .*, found 's4://bucket/run': Protocol not known"),
        ("s3://", "store: .*names no bucket"),
        ("gs://bucket/run", r"store: gs://bucket/run needs the extra 'gs' \(pip install 'c3po-utils\[gs\]'\)"),
    ],
)
def test_a_store_is_checked_before_anything_starts(store, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # not installed
    with pytest.raises(ParameterError, match=said) as raised:
        check.check(load_config("demo", [f"store={store}"]))
    assert "password@" not in str(raised.value)


def test_secrets_of_stores_are_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "w0rd/w1th+signs/in/it")
    with pytest.raises(ParameterError, match="'judge_model' holds what looks like a key"):
        check.refuse_secrets({"judge_model": "w0rd/w1th+signs/in/it"})


def test_figures_outside_of_a_run_with_a_store_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"figures: output: expected a folder in .*found 'results/other'"):
        check.check(load_config("demo", [f"store={tmp_path}", "figures.output=results/other"]))


def test_a_store_in_the_runs_own_folder_is_refused(tmp_path):
    for place in (tmp_path / "run", tmp_path / "run" / "store", tmp_path):
        with pytest.raises(ValueError, match="expected a place outside of the run's own folder"):
            Store(str(place), tmp_path / "run")


def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path):
    remote, (soft, hard) = Remote(str(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(StoreError):
            remote.create("driver/1.json", b"{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert remote.create("driver/1.json", b"{}")


def test_of_many_that_create_a_file_one_succeeds(url, tmp_path):
    create = "print(Remote(sys.argv[1]).create('one', sys.argv[2].encode()))"
    code = f"import sys; from c3po_utils.runs.remote import Remote; {create}"
    for place in (url, str(tmp_path / "place")):
        processes = [
            subprocess.Popen([sys.executable, "-c", code, place, str(n)], stdout=subprocess.PIPE, text=True)
            for n in range(3)
        ]
        won = [process.communicate()[0].strip() for process in processes]
        assert sorted(won) == ["False"] * 2 + ["True"]
        assert Remote(place).read("one") == str(won.index("True")).encode()


PUBLISH = """
import sys
from pathlib import Path
from c3po_utils.runs.store import Store
store = Store(sys.argv[1], Path(sys.argv[2]))
for folder in sorted(store.run.glob("sample/*"))[int(sys.argv[3])::8]:
    assert store.publish(folder, None)
"""


@pytest.mark.slow
def test_two_hundred_stages_by_eight_processes_at_one_time(url, tmp_path):
    here, there = Store(url, tmp_path / "here"), Store(url, tmp_path / "there")
    for n in range(200):
        make(here.run, f"sample/{n:03}", seed=n)
    arguments = [sys.executable, "-c", PUBLISH, url, str(here.run)]
    processes = [subprocess.Popen([*arguments, str(n)]) for n in range(8)]
    folders = [there.run / f"sample/{n:03}" for n in range(200)]
    seen = 0
    while any(process.poll() is None for process in processes):
        for folder, theirs in there.manifests(folders).items():
            there.fetch(folder, theirs)
            seen += 1
    assert [process.returncode for process in processes] == [0] * 8
    assert seen
    found = there.manifests(folders)
    assert len(found) == 200
    for n, (folder, theirs) in enumerate(found.items()):
        there.fetch(folder, theirs)
        assert contents(folder) == contents(here.run / folder.relative_to(there.run))
        assert read_json(folder / MANIFEST)["identity"] == {"seed": n}
