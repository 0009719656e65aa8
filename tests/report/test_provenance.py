import subprocess

from mosaic.report.provenance import commit, describe_run_conditions


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_conditions_name_versions_machine_and_seconds():
    conditions = describe_run_conditions(wall_s_by_step={"plan": 0.1}, solver_s=0.05, reacting_s=0.5)
    assert list(conditions) == ["schema_version", "versions", "commit", "machine", "wall_s", "solver_s", "reacting_s"]
    assert conditions["versions"]["numpy"].count(".") >= 1
    assert conditions["machine"]["num_cpus"] >= 1
    assert (conditions["wall_s"], conditions["solver_s"], conditions["reacting_s"]) == ({"plan": 0.1}, 0.05, 0.5)


def test_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr("mosaic.report.provenance.PACKAGES", ("no-such-distribution",))
    assert describe_run_conditions(wall_s_by_step={}, solver_s=None)["versions"]["no-such-distribution"] is None


def test_commit_is_the_checkout_and_says_when_files_differ(tmp_path):
    git(tmp_path, "init")
    assert commit(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_folder_inside_somebody_elses_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init")
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert commit(inner) is None


def test_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None
