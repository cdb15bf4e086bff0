"""What images/assemble.sh promises, shown with small programs in place of the real ones: `python3 images/test/assembly.py`.

The real programs take minutes to build; how they are put into images does not depend on what they do.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import subprocess
import tarfile
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("lcl-operator", "lcl-coordinator", "lcl-trainer")
USER = "65532:65532"


def compile_c(source, output, *flags):
    output.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-x", "c", "-", "-o", output, *flags], input=source, text=True, check=True)


def make_programs(folder, exit_code=0):
    """Static programs, and a trainer that needs a libtorch of three libraries, one of them only by way of another."""
    main = f"int main(void) {{ return {exit_code}; }}"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / f"{name}.licenses").write_text(f"what is in {name}\n")
    for name in PROGRAMS[:2]:
        compile_c(main, folder / name, "-static")
    lib = folder / "libtorch" / "lib"
    compile_c("int ten(void) { return 10; }", lib / "libc10.so", "-shared")
    compile_c("int ten(void); int torch(void) { return ten(); }", lib / "libtorch_cpu.so", "-shared", f"-L{lib}", "-lc10", "-Wl,-rpath,$ORIGIN")
    compile_c("int cuda(void) { return 1; }", lib / "libtorch_cuda.so", "-shared")
    licenses = folder / "libtorch" / "licenses" / "torch"
    licenses.mkdir(parents=True)
    (licenses / "LICENSE").write_text("the licence of libtorch\n")
    source = f"int torch(void); int main(void) {{ return torch() - 10 + {exit_code}; }}"
    compile_c(source, folder / "lcl-trainer", f"-L{lib}", "-ltorch_cpu", "-Wl,-rpath,$ORIGIN/../lib", f"-Wl,-rpath-link,{lib}")


def assemble(programs, out, **environment):
    environment = {**os.environ, "LIBTORCH": str(programs / "libtorch"), **environment}
    return subprocess.run([ROOT / "images/assemble.sh", programs, out], env=environment, check=True, capture_output=True, text=True)


class Image:
    """An archive, read as containerd reads it: every blob by its digest."""

    def __init__(self, archive):
        with tarfile.open(archive) as tar:
            self.files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        self.index = json.loads(self.files["index.json"])
        (self.entry,) = self.index["manifests"]
        self.manifest = json.loads(self.blob(self.entry))
        self.config = json.loads(self.blob(self.manifest["config"]))

    def blob(self, descriptor):
        digest = descriptor["digest"].removeprefix("sha256:")
        content = self.files[f"blobs/sha256/{digest}"]
        assert hashlib.sha256(content).hexdigest() == digest, f"{digest} names other content"
        return content

    def members(self):
        """Path → (tar member, content) of all layers, later ones over earlier ones."""
        found = {}
        for layer in self.manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(self.blob(layer)))) as tar:
                for member in tar:
                    content = tar.extractfile(member).read() if member.isfile() else None
                    found[os.path.normpath(member.name)] = (member, content)
        return found


class Assembly(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        root = pathlib.Path(cls.folder.name)
        cls.programs, cls.out = root / "programs", root / "out"
        make_programs(cls.programs)
        assemble(cls.programs, cls.out)
        cls.images = {name: Image(cls.out / f"{name}.tar") for name in (*PROGRAMS, "pause")}

    def digests(self, out):
        return {image["archive"]: image["digest"] for image in json.loads((out / "images.json").read_bytes())["images"]}

    def test_the_same_programs_give_the_same_archives_in_another_folder_at_another_time(self):
        root = pathlib.Path(self.folder.name)
        programs, out = root / "copies of" / "programs", root / "elsewhere" / "out"
        programs.parent.mkdir()
        subprocess.run(["cp", "-r", self.programs, programs], check=True)
        for path in programs.rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
            path.chmod(0o700)
        before = os.umask(0o077)
        try:
            assemble(programs, out, TZ="Asia/Tokyo", LC_ALL="C.UTF-8")
        finally:
            os.umask(before)
        for name in self.images:
            first, second = (folder / f"{name}.tar" for folder in (self.out, out))
            self.assertEqual(first.read_bytes(), second.read_bytes(), name)

    def test_another_name_has_the_same_digest_and_another_program_another(self):
        root = pathlib.Path(self.folder.name)
        assemble(self.programs, root / "named", LCL_IMAGE_REGISTRY="registry.example.com:5000/ml", LCL_IMAGE_TAG="test")
        self.assertEqual(self.digests(root / "named"), self.digests(self.out))
        annotations = Image(root / "named" / "lcl-trainer.tar").entry["annotations"]
        self.assertEqual(annotations["io.containerd.image.name"], "registry.example.com:5000/ml/lcl-trainer:test")

        make_programs(root / "others", exit_code=3)
        assemble(root / "others", root / "other")
        ours, others = self.digests(self.out), self.digests(root / "other")
        self.assertEqual({name for name in ours if ours[name] != others[name]}, {f"{name}.tar" for name in PROGRAMS})

    def test_every_image_runs_its_program_as_nobody_in_particular_on_linux_amd64(self):
        for name, image in self.images.items():
            with self.subTest(name):
                self.assertEqual((image.config["os"], image.config["architecture"]), ("linux", "amd64"))
                self.assertEqual(image.entry["platform"], {"os": "linux", "architecture": "amd64"})
                config = image.config["config"]
                self.assertEqual(config["User"], USER)
                self.assertEqual(config["Entrypoint"], [f"/usr/local/bin/{name}"])
                self.assertNotIn("Cmd", config)
                labels = config["Labels"]
                self.assertEqual(labels["org.opencontainers.image.title"], name)
                self.assertRegex(labels["org.opencontainers.image.version"], r"^\d+\.\d+\.\d+")
                self.assertTrue(labels["org.opencontainers.image.licenses"].startswith("Apache-2.0"))
                tag = "test" if name == "pause" else labels["org.opencontainers.image.version"]
                self.assertEqual(image.entry["annotations"]["io.containerd.image.name"], f"lcl.dev/{name}:{tag}")

    def test_only_the_program_and_the_loader_can_be_executed_and_nothing_is_privileged(self):
        for name, image in self.images.items():
            with self.subTest(name):
                executable = set()
                for path, (member, content) in image.members().items():
                    self.assertEqual((member.uid, member.gid, member.mtime), (0, 0, 0), path)
                    self.assertFalse(member.mode & 0o6000, f"{path} changes the user")
                    self.assertFalse(member.mode & 0o022 and path != "tmp", f"{path} can be written to")
                    if member.isfile() and content.startswith(b"#!"):
                        self.fail(f"{path} is a script: there is no shell to run it")
                    if member.isfile() and member.mode & 0o111 and not path.endswith((".so", ".so.1", ".so.6", ".so.13")):
                        executable.add(path)
                expected = {f"usr/local/bin/{name}"} | ({"lib64/ld-linux-x86-64.so.2"} if name == "lcl-trainer" else set())
                self.assertEqual(executable, expected)

    def test_every_image_has_a_user_certificates_licences_and_a_folder_for_temporary_files(self):
        for name, image in self.images.items():
            with self.subTest(name):
                members = image.members()
                self.assertIn(b"nonroot:x:65532:65532:", members["etc/passwd"][1])
                self.assertGreater(members["etc/ssl/certs/ca-certificates.crt"][1].count(b"BEGIN CERTIFICATE"), 50)
                self.assertEqual(members["tmp"][0].mode & 0o7777, 0o1777)
                self.assertIn(b"Apache License", members["usr/share/doc/lcl/LICENSE"][1])
                self.assertIn("usr/share/doc/libc6/copyright", members)
                if name != "pause":
                    self.assertEqual(members["usr/share/doc/lcl/LICENSES-OF-CRATES"][1].decode(), f"what is in {name}\n")

    def test_the_trainer_has_the_libraries_it_needs_and_no_other_of_libtorch(self):
        members = self.images["lcl-trainer"].members()
        beside = {path for path in members if path.startswith("usr/local/lib/")}
        self.assertEqual(beside, {"usr/local/lib/libtorch_cpu.so", "usr/local/lib/libc10.so"})
        self.assertIn("lib/x86_64-linux-gnu/libc.so.6", members)
        self.assertEqual(members["usr/share/doc/libtorch/torch/LICENSE"][1], b"the licence of libtorch\n")
        for static in ("lcl-operator", "lcl-coordinator", "pause"):
            self.assertFalse([path for path in self.images[static].members() if ".so" in path], static)

    def test_the_libraries_are_enough_to_start_the_trainer(self):
        if os.geteuid() != 0:
            self.skipTest("chroot is for root")
        with tempfile.TemporaryDirectory() as root:
            for path, (member, content) in self.images["lcl-trainer"].members().items():
                target = pathlib.Path(root, path)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    target.write_bytes(content)
                target.chmod(member.mode)
            os.chmod(root, 0o755)
            # The loader learns from /proc where a program lies; a container has one, this folder has not.
            environment = {"LD_ORIGIN_PATH": "/usr/local/bin"}
            subprocess.run(["/usr/sbin/chroot", f"--userspec={USER}", root, "/usr/local/bin/lcl-trainer"], env=environment, check=True)

    def test_libtorch_without_its_licences_is_refused(self):
        root = pathlib.Path(self.folder.name)
        programs = root / "unlicensed"
        make_programs(programs)
        (programs / "libtorch" / "licenses" / "torch" / "LICENSE").unlink()
        (programs / "libtorch" / "licenses" / "torch").rmdir()
        (programs / "libtorch" / "licenses").rmdir()
        with self.assertRaises(subprocess.CalledProcessError) as failed:
            assemble(programs, root / "unlicensed-out")
        self.assertIn("has no licenses/", failed.exception.stderr)
        self.assertFalse((root / "unlicensed-out" / "lcl-trainer.tar").exists())


if __name__ == "__main__":
    unittest.main()
