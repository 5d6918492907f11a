"""Sources of others' tests (Debian's source archives, PyPI's sdists), aimed at a given port."""

import glob
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

DEBIAN = ["memcached", "libcache-memcached-perl", "libcache-memcached-fast-perl", "symfony"]
PYPI = ["Django==5.2.1", "memcache==0.14.0"]


def quiet(arguments, **more):
    done = subprocess.run(arguments, capture_output=True, text=True, **more)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[-1:]


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
