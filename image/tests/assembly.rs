//! Whole builds: from small packages made here, and from the real ones where the cache has them. What comes out is read back by
//! independent readers, and made twice to the same bytes.
#![allow(clippy::expect_used, reason = "a test fails by panicking, also in what its parts share")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use keelson_image::artefacts::{self, Assembly, BuildError, EXAMPLE, Inputs, ROLES};
use keelson_image::digest;
use keelson_image::drivers::{DRIVERS, Rule};
use keelson_image::initramfs::{MANIFEST, PROGRAMS};
use keelson_image::licences::Licences;
use keelson_image::lock::{Lock, Locked};
use keelson_image::manifest::Manifest;
use keelson_image::parts::{Cache, Part};
use keelson_image::sizes;
use keelson_image::wants::{PARTS, Role, Wants};
use object::{Object, ObjectSection};

const RULE: &str = r#"
schema = 1
[[group]]
name = "test"
reason = "a driver that needs another and names firmware; one that is built in"
modules = ["nic", "builtin_one"]
"#;

/// A kernel module of nothing but its `.modinfo`, compressed as Debian ships it.
fn module(fields: &[&str]) -> Vec<u8> {
    use object::write::Object;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};
    let mut elf = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let section = elf.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
    for field in fields {
        elf.append_section_data(section, &[field.as_bytes(), b"\0"].concat(), 1);
    }
    xz(&elf.write().expect("ELF"))
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).expect("xz");
    writer.write_all(bytes).expect("xz");
    writer.finish().expect("xz")
}

/// An EFI program with room in its header.
fn stub() -> Vec<u8> {
    let mut pe = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664_u16.to_le_bytes());
    put(0x54, &240_u16.to_le_bytes());
    put(0x58, &0x20b_u16.to_le_bytes());
    for (at, value) in [(32, 4096_u32), (36, 512), (56, 4096), (60, 1024), (108, 16)] {
        put(0x58 + at, &value.to_le_bytes());
    }
    pe
}

struct Packages {
    dir: tempfile::TempDir,
    parts: Vec<Part>,
}

impl Packages {
    fn add(&mut self, role: Role, handle: &str, files: &[(&str, Vec<u8>)]) {
        let root = self.dir.path().join(handle);
        let control = format!(
            "Package: {handle}\nVersion: 1.0\nArchitecture: amd64\nMaintainer: a test\nDescription: test\n"
        );
        let licence = (format!("usr/share/doc/{handle}/copyright"), b"its terms".to_vec());
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone()));
        for (path, bytes) in files.chain([("DEBIAN/control".to_owned(), control.into_bytes()), licence]) {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, bytes).expect("write");
        }
        let deb = self.dir.path().join(format!("{handle}.deb"));
        let done = Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "-z1", "-b"])
            .arg(&root)
            .arg(&deb)
            .output();
        assert!(done.expect("dpkg-deb").status.success());
        let locked = Locked {
            role,
            handle: handle.into(),
            package: handle.into(),
            version: "1.0".into(),
            suite: "trixie".into(),
            sha256: digest::of_file(&deb).expect("digest"),
            size: fs::metadata(&deb).expect("size").len(),
            source: handle.into(),
            source_version: "1.0".into(),
            built_using: String::new(),
        };
        self.parts.push(Part { locked, deb });
    }
}

fn small() -> (Packages, Inputs) {
    let mut packages = Packages { dir: tempfile::tempdir().expect("tempdir"), parts: Vec::new() };
    let base = "usr/lib/modules/6.12.0-test";
    packages.add(
        Role::Kernel,
        "linux-image-amd64",
        &[
            ("boot/vmlinuz-6.12.0-test", b"MZ the kernel".to_vec()),
            (&format!("{base}/modules.builtin"), b"kernel/builtin-one.ko\n".to_vec()),
            (
                &format!("{base}/kernel/drivers/nic.ko.xz"),
                module(&["depends=phy-lib", "alias=pci:v1*", "firmware=nic/fw.bin", "firmware=nic/none.bin"]),
            ),
            (&format!("{base}/kernel/lib/phy-lib.ko.xz"), module(&["depends="])),
            (&format!("{base}/kernel/sound/noise.ko.xz"), module(&["depends="])),
        ],
    );
    packages.add(Role::Stub, "systemd-boot-efi", &[("usr/lib/systemd/boot/efi/linuxx64.efi.stub", stub())]);
    packages.add(Role::Fsck, "e2fsck-static", &[("sbin/e2fsck.static", b"fsck".to_vec())]);
    packages.add(
        Role::Microcode,
        "amd64-microcode",
        &[("usr/lib/firmware/amd-ucode/microcode_amd.bin", b"amd".to_vec())],
    );
    packages.add(Role::Firmware, "firmware-misc-nonfree", &[("usr/lib/firmware/nic/fw.bin", vec![9; 9000])]);
    let inputs = Inputs {
        wants: Wants::parse(PARTS).expect("parts.toml"),
        rule: Rule::parse(RULE).expect("rule"),
        parts: packages.parts.clone(),
        programs: PROGRAMS
            .iter()
            .map(|(name, _)| (*name, format!("the program {name}").into_bytes()))
            .collect(),
        linked: Vec::new(),
        licences: Licences::default(),
        more_words: "keelson.log=debug".into(),
        added: BTreeMap::from([("test/extra".to_owned(), b"extra".to_vec())]),
        kept: None,
    };
    (packages, inputs)
}

/// All files of a cpio archive; further archives behind it count as well, as for the kernel.
fn unpack(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    while !bytes.is_empty() {
        let mut reader = cpio::newc::Reader::new(bytes).expect("cpio");
        let name = reader.entry().name().trim_end_matches('\0').to_owned();
        let last = reader.entry().is_trailer();
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).expect("contents");
        bytes = reader.finish().expect("next");
        if !last {
            files.insert(name, contents);
        }
    }
    files
}

fn section(uki: &[u8], name: &str) -> Vec<u8> {
    let file = object::read::pe::PeFile64::parse(uki).expect("PE");
    file.section_by_name(name).expect(name).data().expect(name).to_vec()
}

#[test]
fn everything_is_in_its_place() {
    let (_packages, inputs) = small();
    let built = artefacts::assemble(&inputs).expect("assemble");
    assert_eq!(section(&built.uki, ".linux"), b"MZ the kernel");
    assert_eq!(section(&built.uki, ".initrd"), built.initramfs);
    assert_eq!(section(&built.uki, ".uname"), b"6.12.0-test");
    let words = String::from_utf8(section(&built.uki, ".cmdline")).expect("text");
    assert!(words.starts_with(artefacts::COMMAND_LINE) && words.ends_with(" keelson.log=debug"));

    let files = unpack(&built.initramfs);
    let text = |path: &str| String::from_utf8_lossy(&files[path]).into_owned();
    assert_eq!(files["init"], b"the program init");
    assert_eq!(files["bin/keelson-vmm"], b"the program keelson-vmm");
    assert_eq!(files["sbin/e2fsck"], b"fsck");
    assert_eq!(files["kernel/x86/microcode/AuthenticAMD.bin"], b"amd");
    assert_eq!(files["test/extra"], b"extra");
    let modules = "lib/modules/6.12.0-test";
    let dep = text(&format!("{modules}/modules.dep"));
    assert_eq!(dep, "kernel/drivers/nic.ko.xz: kernel/lib/phy-lib.ko.xz\nkernel/lib/phy-lib.ko.xz:\n");
    assert_eq!(text(&format!("{modules}/modules.alias")), "alias pci:v1* nic\n");
    assert!(
        files[&format!("{modules}/kernel/drivers/nic.ko.xz")].starts_with(b"\xfd7zXZ"),
        "drivers stay compressed"
    );
    assert!(
        !files.contains_key(&format!("{modules}/kernel/sound/noise.ko.xz")),
        "what the rule does not name is out"
    );
    assert!(files.contains_key("lib/firmware/nic/fw.bin.xz"));
    assert!(files.contains_key("usr/share/keelson/licences/debian/e2fsck-static.xz"));

    let manifest: Manifest = serde_json::from_slice(&files[MANIFEST]).expect("manifest");
    assert_eq!(manifest, built.manifest);
    assert_eq!(manifest.firmware_left_out, ["nic/none.bin"]);
    let find = |name: &str| manifest.parts.iter().find(|part| part.name == name).expect(name);
    assert_eq!(find("linux-image-amd64").licence, "GPL-2.0-only WITH Linux-syscall-note");
    assert!(find("linux-image-amd64").source.place.contains("apt-get source"));
    assert_eq!(find("netd").sha256, digest::of_bytes(b"the program netd"));
}

#[test]
fn two_builds_are_the_same_bytes() {
    let (packages, inputs) = small();
    let outs: Vec<BTreeMap<String, String>> = ["a", "b"]
        .iter()
        .map(|name| {
            let out = packages.dir.path().join(name);
            artefacts::assemble(&inputs).expect("assemble").write(&out).expect("write");
            sums(&out)
        })
        .collect();
    assert_eq!(outs[0].len(), 7);
    assert_eq!(outs[0], outs[1]);
}

#[test]
fn a_build_from_what_was_kept_is_the_same_and_damage_is_noticed() {
    let (packages, mut inputs) = small();
    let fresh = artefacts::assemble(&inputs).expect("assemble");
    let kept = packages.dir.path().join("kept");
    inputs.kept = Some(kept.clone());
    artefacts::assemble(&inputs).expect("keep");
    let file = fs::read_dir(&kept).expect("directory").next().expect("one file").expect("entry").path();

    // Without the packages only what was kept can give an image.
    let debs: Vec<(PathBuf, Vec<u8>)> =
        inputs.parts.iter().map(|part| (part.deb.clone(), fs::read(&part.deb).expect("read"))).collect();
    debs.iter().for_each(|(path, _)| fs::remove_file(path).expect("remove"));
    assert!(artefacts::assemble(&inputs).expect("from what was kept").uki == fresh.uki);

    let mut bytes = fs::read(&file).expect("read");
    bytes[100] ^= 1;
    fs::write(&file, bytes).expect("write");
    assert!(artefacts::assemble(&inputs).is_err(), "damaged, and the packages are gone");
    debs.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("write"));
    assert!(artefacts::assemble(&inputs).expect("taken anew").uki == fresh.uki);

    // Another rule is another key.
    inputs.rule = Rule::parse(&RULE.replace("\"nic\", ", "")).expect("rule");
    assert!(artefacts::assemble(&inputs).expect("other rule").uki != fresh.uki);
    assert_eq!(fs::read_dir(&kept).expect("directory").count(), 1, "only the newest is kept");
}

fn sums(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry").path());
    entries
        .map(|path| {
            (
                path.file_name().expect("name").to_string_lossy().into_owned(),
                digest::of_file(&path).expect("sum"),
            )
        })
        .collect()
}

#[test]
fn the_manifest_beside_the_image_names_the_files() {
    let (packages, inputs) = small();
    let out = packages.dir.path().join("out");
    let artefacts = artefacts::assemble(&inputs).expect("assemble").write(&out).expect("write");
    let beside: Manifest =
        serde_json::from_slice(&fs::read(out.join("keelson.manifest.json")).expect("read"))
            .expect("manifest");
    assert_eq!(beside.artefacts, artefacts);
    let image = beside.artefacts.iter().find(|artefact| artefact.name == "keelson.img").expect("image");
    assert_eq!(image.sha256, digest::of_file(&out.join("keelson.img")).expect("digest"));
}

#[test]
fn programs_must_be_there_and_static() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::write(dir.path().join("init"), b"x").expect("write");
    let error = artefacts::programs(dir.path()).map(|_| ());
    assert!(
        matches!(error, Err(BuildError::Programs { names, .. }) if names == ["netd", "hostd", "dcui", "keelson-vmm"])
    );
    // A test program is static as all of this workspace; the shell of the build machine is not.
    for (program, static_one) in
        [(std::env::current_exe().expect("path"), true), (PathBuf::from("/bin/sh"), false)]
    {
        for (name, _) in PROGRAMS {
            fs::copy(&program, dir.path().join(name)).expect("copy");
        }
        match artefacts::programs(dir.path()) {
            Ok(all) => assert!(static_one && all.len() == PROGRAMS.len()),
            Err(error) => assert!(!static_one && matches!(error, BuildError::NotStatic(_)), "{error}"),
        }
    }
}

#[test]
fn the_example_of_host_words_says_nothing_and_every_word_in_it_is_known() {
    let (words, errors) = keelson_init_control::parse_file(EXAMPLE);
    assert_eq!((words, errors), Default::default());
    let uncommented: String = EXAMPLE
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|l| !l.starts_with(' '))
        .map(|l| format!("{l}\n"))
        .collect();
    assert!(uncommented.lines().count() >= 8);
    let (_, errors) = keelson_init_control::parse_file(&uncommented);
    assert_eq!(errors, []);
}

/// The real packages. Without network this says what is missing; where the lab is required, missing is failing.
#[test]
fn the_real_parts_fit_and_assemble_twice_to_the_same_bytes() {
    let lock = Lock::read(Path::new("parts.lock")).expect("parts.lock");
    let wants = Wants::parse(PARTS).expect("parts.toml");
    let Some(cache) = warm_cache(&lock) else {
        let required =
            std::env::var("KEELSON_REQUIRE").is_ok_and(|all| all.split(',').any(|one| one == "lab"));
        assert!(!required, "the cache lacks parts; `keelson-image fetch parts` gets them");
        eprintln!("skipped: the cache lacks parts; `keelson-image fetch parts` gets them");
        return;
    };
    let inputs = Inputs {
        parts: cache.obtain(&wants, &lock, ROLES).expect("from the cache"),
        wants,
        rule: Rule::parse(DRIVERS).expect("drivers.toml"),
        programs: PROGRAMS.iter().map(|(name, _)| (*name, name.as_bytes().to_vec())).collect(),
        linked: Vec::new(),
        licences: Licences::common().expect("common licences"),
        more_words: String::new(),
        added: BTreeMap::new(),
        kept: None,
    };
    let (one, two): (Assembly, Assembly) =
        (artefacts::assemble(&inputs).expect("first"), artefacts::assemble(&inputs).expect("second"));
    assert!(one.uki == two.uki, "two assemblies differ");
    assert!(one.uki.len() as u64 <= sizes::LIMIT);
    assert_eq!(section(&one.uki, ".linux"), one.kernel);
    let files = unpack(&one.initramfs);
    for name in ["kvm", "kvm-amd", "kvm-intel", "nfsv4", "igb", "bonding", "8021q", "ipmi_si", "usb-storage"]
    {
        assert!(files.keys().any(|path| path.ends_with(&format!("/{name}.ko.xz"))), "{name}");
    }
    for name in ["ext4", "jbd2", "bridge", "llc", "nvme"] {
        let module = files.iter().find(|(path, _)| path.ends_with(&format!("/{name}.ko")));
        assert!(module.is_some_and(|(_, bytes)| bytes.starts_with(b"\x7fELF")), "{name}");
    }
    assert!(files.contains_key("lib/firmware/tigon/tg3.bin.xz"));
    assert!(files["kernel/x86/microcode/GenuineIntel.bin"].len() > 1 << 20);
}

fn warm_cache(lock: &Lock) -> Option<Cache> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let dir = std::env::var_os("KEELSON_CACHE")
        .map(PathBuf::from)
        .or_else(|| base().map(|base| base.join("keelson")))?;
    let needed = lock.parts.iter().filter(|part| ROLES.contains(&part.role));
    let there = needed.into_iter().all(|part| dir.join("debs").join(format!("{}.deb", part.sha256)).exists());
    there.then(|| Cache::open(&dir).expect("cache"))
}
