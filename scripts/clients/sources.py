"""Sources of others' tests (Debian's source archives, PyPI's sdists, a gem, a Go module), aimed at a
given port."""

import glob
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

DEBIAN = ["memcached", "libcache-memcached-perl", "libcache-memcached-fast-perl", "symfony",
          "php-memcached"]
PYPI = ["Django==5.2.1", "memcache==0.14.0"]
DALLI = "5.0.6"
EXPORTER = "github.com/prometheus/memcached_exporter/cmd/memcached_exporter@v0.11.0"


def quiet(arguments, **more):
    """`None`, or what is wrong."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, **more)
    except subprocess.TimeoutExpired as late:
        return [str(late)]
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[-2:]


def fetch(dir):
    """Once; what cannot be had is named, and its suites are skipped."""
    at = os.path.abspath(f"{dir}/sources")
    os.makedirs(f"{at}/lists/partial", exist_ok=True)
    wanted = [name for name in DEBIAN if not glob.glob(f"{at}/{name}_*.orig.tar.*")]
    if wanted and shutil.which("apt-get"):
        apt = ["apt-get", "-o", f"Dir::Etc::sourcelist={at}/debian.sources", "-o", "APT::Sandbox::User=root",
               "-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={at}/lists"]
        with open(f"{at}/debian.sources", "w") as sources:
            for file in glob.glob("/etc/apt/sources.list.d/debian.sources"):
                text = open(file).read()
                sources.write(re.sub(r"^Types: deb$", "Types: deb-src", text, flags=re.M))
        quiet([*apt, "update"], cwd=at)
        for name in wanted:
            said = quiet([*apt, "source", "--tar-only", "--download-only", name], cwd=at)
            if said is not None:
                print(f"test-clients: no source of {name}: {' '.join(said)}", flush=True)
    for name in PYPI:
        stem = name.lower().replace("==", "-")
        if not glob.glob(f"{at}/{stem}.tar.gz"):
            pip = [f"{dir}/bin/pip", "download", "--no-deps", "--no-binary", name.split("==")[0], "-d", at, name]
            said = quiet(pip)
            if said is not None:
                print(f"test-clients: no source of {name}: {' '.join(said)}", flush=True)
    # (A `git clone` in its place does as well.)
    if not os.path.isdir(f"{at}/dalli") and shutil.which("gem"):
        said = quiet(["gem", "unpack", "dalli", "--version", DALLI, "--target", at], cwd=at, timeout=120)
        # (Without its registry it fails, and exits with 0.)
        if os.path.isdir(f"{at}/dalli-{DALLI}"):
            os.rename(f"{at}/dalli-{DALLI}", f"{at}/dalli")
        else:
            print(f"test-clients: no gem dalli {DALLI}: {' '.join(said or ['gem found none'])}", flush=True)
    bin = f"{at}/memcached_exporter"
    if not shutil.which("prometheus-memcached-exporter") and shutil.which("go") and not os.path.isdir(bin):
        go = {**os.environ, "GOBIN": bin, "GOPATH": f"{at}/go", "GOFLAGS": "-modcacherw"}
        said = quiet(["go", "install", EXPORTER], cwd=at, timeout=600, env=go)
        if said is not None:
            print(f"test-clients: no {EXPORTER}: {' '.join(said)}", flush=True)


def archive(dir, pattern):
    found = [file for file in glob.glob(os.path.abspath(f"{dir}/sources/{pattern}")) if os.path.isfile(file)]
    return found[0] if found else None


def unpacked(dir, pattern, part):
    """The folder `part` of an archive (its first component left off), unpacked once."""
    file = archive(dir, pattern)
    to = f"{file}.{part.replace('/', '-')}"
    if not os.path.isdir(to):
        with tarfile.open(file) as whole:
            inside = [one for one in whole.getmembers() if one.name.partition("/")[2].startswith(part)]
            whole.extractall(to, members=inside)
    return next(iter(glob.glob(f"{to}/*/{part}")))


def php_memcached(dir):
    """The folder of php-memcached's tests; Debian's archive has one of each of two versions."""
    clone, file = os.path.abspath(f"{dir}/sources/php-memcached/tests"), archive(dir, "php-memcached_*.orig.tar.*")
    if os.path.isdir(clone) or file is None:
        return clone if os.path.isdir(clone) else None
    to = f"{file}.all"
    if not os.path.isdir(to):
        with tarfile.open(file) as whole:
            whole.extractall(to)
    found = [at for at, _, files in os.walk(to) if os.path.basename(at) == "tests" and "get.phpt" in files]
    return max(found, default=None)


def aimed(folder, port):
    """A copy of a folder whose tests speak to `port` in the place of 11211."""
    to = tempfile.mkdtemp(prefix="clients-") + "/" + os.path.basename(folder.rstrip("/"))
    shutil.copytree(folder, to)
    for path, _, names in os.walk(to):
        for name in names:
            file = os.path.join(path, name)
            with open(file, "rb") as reading:
                text = reading.read()
            changed = text.replace(b"localhost:11211", b"127.0.0.1:11211").replace(b"11211", b"%d" % port)
            changed = changed.replace(b'"localhost"', b'"127.0.0.1"')
            if changed != text:
                with open(file, "wb") as writing:
                    writing.write(changed)
    return to
