//! Malformed and malicious checkpoints: each is refused with a message that names the file and the fault, without a
//! panic and without taking memory that the file does not justify.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use evomerge::checkpoint::{Checkpoint, CheckpointError};
use evomerge::exit::ExitCode;
use proptest::prelude::*;

/// A safetensors file with this header and this many zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A well-formed file of one-element float32 tensors.
fn valid(names: &[&str]) -> Vec<u8> {
    let entry = |(index, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, index * 4, index * 4 + 4)
    };
    let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
    file(&format!("{{{}}}", entries.join(",")), names.len() * 4)
}

fn open_with(files: &[(&str, &[u8])]) -> Result<Checkpoint, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    Checkpoint::open(folder.path())
}

fn open_weights(weights: &[u8]) -> Result<Checkpoint, CheckpointError> {
    open_with(&[("config.json", b"{}"), ("model.safetensors", weights)])
}

#[track_caller]
fn refused(result: Result<Checkpoint, CheckpointError>, expected: &str) {
    let error = result.map(|_| ()).expect_err(expected);
    let text = error.to_string();
    assert!(text.contains(expected), "expected {expected:?} in {text:?}");
    assert!(
        text.len() < 4000 && !text.chars().any(|character| character.is_control() && character != '\n'),
        "{text:?}"
    );
    assert_eq!(error.exit_code(), ExitCode::BadData);
}

#[track_caller]
fn header_refused(header: &str, data: usize, expected: &str) {
    refused(open_weights(&file(header, data)), expected);
}

#[test]
fn the_tests_own_files_are_valid() {
    let checkpoint = open_weights(&valid(&["a", "b"])).unwrap();
    assert_eq!(checkpoint.tensors().len(), 2);
}

#[test]
fn files_that_are_no_safetensors() {
    refused(open_weights(b""), "0 bytes are too few for a header");
    refused(open_weights(b"1234567"), "7 bytes are too few for a header");
    refused(
        open_weights(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "does not fit a file",
    );
    refused(open_weights(&u64::MAX.to_le_bytes()), "a header of 18446744073709551615 bytes does not fit");
    refused(open_weights(&(1u64 << 40).to_le_bytes()), "a header of 1099511627776 bytes does not fit");
    refused(open_weights(&[0; 8]), "not as the format says");
    header_refused("[]", 0, "not as the format says");
    header_refused("nonsense", 0, "not as the format says");
    header_refused("{} {}", 0, "not as the format says");
    header_refused("{}", 0, "hold no tensor");
    let mut bytes = file("{    }", 0);
    bytes[9] = 0xFF;
    refused(open_weights(&bytes), "not UTF-8");
}

#[test]
fn a_header_longer_than_the_format_allows() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let weights = fs::File::create(folder.path().join("model.safetensors")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&weights, &100_000_001u64.to_le_bytes(), 0).unwrap();
    weights.set_len(200_000_000).unwrap();
    refused(Checkpoint::open(folder.path()), "longer than the format's limit of 100000000");
}

#[test]
fn truncated_and_padded_files() {
    let whole = valid(&["a", "b"]);
    for length in 0..whole.len() {
        assert!(open_weights(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
    refused(open_weights(&whole[..whole.len() - 1]), "is the download complete?");
    refused(open_weights(&[whole, vec![0]].concat()), "take 8 bytes, but 9 bytes of data follow");
}

#[test]
fn offsets_that_lie() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{first}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#
        )
    };
    header_refused(&two("[0,4]", "[2,6]"), 8, "tensor `b`: its bytes (2 to 6) overlap");
    header_refused(&two("[0,4]", "[0,4]"), 4, "overlap");
    header_refused(&two("[0,4]", "[5,9]"), 9, "tensor `b`: its bytes (5 to 9) leave a hole");
    header_refused(&two("[1,5]", "[5,9]"), 9, "tensor `a`: its bytes (1 to 5) leave a hole");
    header_refused(&two("[4,0]", "[4,8]"), 8, "tensor `a`: its bytes end at 0, before they start at 4");
    header_refused(&two("[0,4]", "[4,9]"), 9, "takes 4 bytes, but the header gives it 5");
    header_refused(&two("[0,4]", "[18446744073709551612,18446744073709551615]"), 8, "the file has only 8 bytes");
    header_refused(&two("[0,4]", "[4,18446744073709551616]"), 8, "tensor `b`");
    header_refused(&two("[0,4]", "[-4,8]"), 8, "tensor `b`");
    header_refused(&two("[0,4]", "[4.0,8.0]"), 8, "tensor `b`");
    header_refused(&two("[0,4]", "[4]"), 8, "tensor `b`");
    header_refused(&two("[0,4]", "[4,8,12]"), 8, "not as the format says");
}

#[test]
fn shapes_that_lie() {
    let one = |shape: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
    header_refused(&one("[2]"), 4, "F32 of shape [2] takes 8 bytes, but the header gives it 4");
    header_refused(&one("[4294967296,4294967296]"), 4, "overflows");
    header_refused(&one("[4611686018427387905]"), 4, "overflows");
    header_refused(&one("[0]"), 4, "takes 0 bytes");
    header_refused(&one("[-1]"), 4, "tensor `a`");
    header_refused(&one("[1e0]"), 4, "tensor `a`");
    header_refused(&one(r#""1""#), 4, "a shape of at most 64 dimensions");
    header_refused(&one(&format!("[{}1]", "1,".repeat(100_000))), 4, "more than 64 dimensions");
    header_refused(&one(&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))), 4, "tensor `a`");
}

#[test]
fn types_that_cannot_be_merged() {
    let one =
        |dtype: &str, bytes: usize| format!(r#"{{"a":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{bytes}]}}}}"#);
    for (dtype, bytes) in [("F8_E4M3", 2), ("F8_E5M2", 2), ("F8_E8M0", 2), ("F4", 1), ("C64", 16)] {
        header_refused(&one(dtype, bytes), bytes, &format!("tensor `a`: element type {dtype} is not supported"));
    }
    header_refused(&one("F99", 2), 2, "tensor `a`: unknown variant `F99`");
    for (dtype, bytes) in [("BOOL", 2), ("U8", 2), ("I64", 16), ("F16", 4), ("BF16", 4), ("F64", 16)] {
        open_weights(&file(&one(dtype, bytes), bytes)).unwrap();
    }
}

#[test]
fn headers_that_say_things_twice_or_not_at_all() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    header_refused(&format!(r#"{{"a":{entry},"a":{entry}}}"#), 1, "`a` appears twice");
    let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    header_refused(&format!(r#"{{"a":{empty},"a":{empty}}}"#), 0, "`a` appears twice");
    header_refused(&format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"a":{entry}}}"#), 1, "appears twice");
    header_refused(&format!(r#"{{"__metadata__":{{"format":1}},"a":{entry}}}"#), 1, "not as the format says");
    header_refused(&format!(r#"{{"__metadata__":"text","a":{entry}}}"#), 1, "from text to text");
    header_refused(r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#, 1, "duplicate field");
    header_refused(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1, "missing field");
    header_refused(r#"{"a":1}"#, 1, "tensor `a`");
    let name = format!("\\u001b[31m{}", "x".repeat(100_000));
    header_refused(&format!(r#"{{"{name}":1}}"#), 0, "\\u{1b}[31m");
    open_weights(&file(&format!(r#"{{"__metadata__":null,"a":{entry}}}{}"#, " ".repeat(1 << 20)), 1)).unwrap();
}

#[test]
fn directories_that_are_no_checkpoint() {
    let weights = valid(&["a"]);
    refused(open_with(&[("model.safetensors", &weights)]), "has no config.json");
    refused(open_with(&[("config.json", b"{}")]), "neither model.safetensors nor model.safetensors.index.json");
    refused(open_with(&[("config.json", b"{}"), ("other.safetensors", &weights)]), "it has `other.safetensors`, but");
    refused(open_with(&[("config.json", b"{}"), ("pytorch_model.bin", b"")]), "safe_serialization=True");
    refused(open_with(&[("config.json", b"{}"), ("m.gguf", b"")]), "GGUF weights only (`m.gguf`)");
    let adapter: [(&str, &[u8]); 2] = [("adapter_config.json", b"{}"), ("adapter_model.safetensors", &weights)];
    refused(open_with(&adapter), "`BASE+ADAPTER`");
    for (config, expected) in [
        ("", "config.json: not valid JSON"),
        ("[]", "config.json: expected a JSON object"),
        ("{\"a\": }", "not valid JSON"),
        ("{\"a\": [0.0, Infinite]}", "not valid JSON"),
        (&"[".repeat(100_000), "recursion limit"),
    ] {
        refused(open_with(&[("config.json", config.as_bytes()), ("model.safetensors", &weights)]), expected);
    }
    let folder = tempfile::tempdir().unwrap();
    refused(Checkpoint::open(&folder.path().join("absent")), "cannot read");
    let path = folder.path().join("model.safetensors");
    fs::write(&path, &weights).unwrap();
    refused(Checkpoint::open(&path), "it is a file; expected the model's directory");
}

#[test]
fn weights_that_are_no_regular_file() {
    let with = |make: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        make(&folder.path().join("model.safetensors"));
        Checkpoint::open(folder.path())
    };
    refused(with(&|path| fs::create_dir(path).unwrap()), "not a regular file");
    refused(with(&|path| symlink("/dev/zero", path).unwrap()), "not a regular file");
    refused(with(&|path| symlink("model.safetensors", path).unwrap()), "cannot read");
    refused(with(&|path| symlink("absent", path).unwrap()), "cannot read");
    // Opening a pipe without a writer would hang.
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let make_pipe =
        |path: &Path| rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    refused(with(&make_pipe), "not a regular file");
}

#[test]
fn links_to_regular_files_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("blob"), valid(&["a"])).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    symlink("blob", folder.path().join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
}

fn open_sharded(index: &str) -> Result<Checkpoint, CheckpointError> {
    let (first, second) = (valid(&["a", "b"]), valid(&["c"]));
    open_with(&[
        ("config.json", b"{}"),
        ("x1.safetensors", &first),
        ("x2.safetensors", &second),
        ("model.safetensors.index.json", index.as_bytes()),
    ])
}

#[test]
fn indices_that_lie() {
    let map = |entries: &str| format!(r#"{{"metadata": {{}}, "weight_map": {{{entries}}}}}"#);
    let right = r#""a": "x1.safetensors", "b": "x1.safetensors", "c": "x2.safetensors""#;
    assert_eq!(open_sharded(&map(right)).unwrap().shards().len(), 2);

    let cases = [
        (r#""a": "x1.safetensors", "c": "x2.safetensors""#, "does not list tensor `b`, which `x1.safetensors` holds"),
        (
            r#""a": "x1.safetensors", "b": "x1.safetensors", "c": "x2.safetensors", "d": "x2.safetensors""#,
            "lists tensor `d` in `x2.safetensors`, which does not hold it",
        ),
        (r#""a": "x1.safetensors", "b": "x2.safetensors", "c": "x2.safetensors""#, "tensor `b`"),
        (r#""a": "x3.safetensors""#, "names `x3.safetensors`, which is not there"),
        (r#""a": "x1.safetensors", "a": "x2.safetensors""#, "the key \"a\" appears twice"),
        (r#""a": 1"#, "not a valid index"),
        ("", "names no tensor"),
    ];
    for (entries, expected) in cases {
        refused(open_sharded(&map(entries)), expected);
    }
    refused(open_sharded("{}"), "missing field `weight_map`");
    refused(open_sharded("[]"), "not a valid index");
    refused(open_sharded(&"[".repeat(100_000)), "not a valid index");
}

#[test]
fn index_entries_do_not_leave_their_folder() {
    for name in [
        "../x1.safetensors",
        "/etc/x1.safetensors",
        "./x1.safetensors",
        "a/x1.safetensors",
        "a\\\\x1.safetensors",
        "C:x1.safetensors",
        "x1.safetensors/",
        "x1.safetensors\\u0000",
        "\\u0000.safetensors",
        "x1.bin",
        ".safetensors",
        "..",
        "",
        "/dev/zero",
    ] {
        let index = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
        refused(open_sharded(&index), "expected the name of a .safetensors file in the same folder");
    }
}

#[test]
fn a_tensor_in_two_shards() {
    let shard = valid(&["a"]);
    let result = open_with(&[
        ("config.json", b"{}"),
        ("x1.safetensors", &shard),
        ("x2.safetensors", &shard),
        ("model.safetensors.index.json", br#"{"weight_map": {"a": "x1.safetensors", "b": "x2.safetensors"}}"#),
    ]);
    refused(result, "tensor `a`: it is also in `x1.safetensors`");
}

#[test]
fn names_that_look_like_enormous_models() {
    let deep = format!("{}w", "0.".repeat(50_000));
    let layout =
        open_weights(&valid(&["layers.999999999999999999999.w", "layers.4294967296.w", &deep])).unwrap().layers();
    assert!(layout.count <= 1_000_000);
}

/// Opening may fail, but what it lets pass must be whole.
fn check_whatever_opens(weights: &[u8]) {
    if let Ok(checkpoint) = open_weights(weights) {
        for (name, info) in checkpoint.tensors() {
            let bytes = checkpoint.bytes(name).expect("every tensor has its bytes");
            assert_eq!(bytes.len(), info.byte_len());
            assert!(safetensors::SafeTensors::deserialize(weights).is_ok(), "the reference reader accepts it too");
        }
        checkpoint.layers();
        checkpoint.first_nonfinite();
    }
}

fn json_like() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just(":".to_owned()),
        Just(",".to_owned()),
        Just("\"dtype\":\"F32\"".to_owned()),
        Just("\"shape\":[1]".to_owned()),
        Just("\"data_offsets\":[0,4]".to_owned()),
        Just("\"a\":".to_owned()),
        Just("\"__metadata__\":".to_owned()),
        Just("null".to_owned()),
        any::<u64>().prop_map(|number| number.to_string()),
    ];
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_whatever_opens(&bytes);
    }

    #[test]
    fn random_headers(header in json_like(), data in 0usize..16) {
        check_whatever_opens(&file(&header, data));
    }

    #[test]
    fn valid_files_with_bytes_changed(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = valid(&["layers.0.w", "layers.1.w", "norm"]);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        check_whatever_opens(&bytes);
    }

    /// Numbers of a header replaced by any others: the reference reader must agree on what is valid.
    #[test]
    fn extents_and_offsets(shape in prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..3), ends in prop::array::uniform4(0u64..9), data in 0usize..9) {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":{shape:?},"data_offsets":[{},{}]}},"b":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}}}}"#,
            ends[0], ends[1], ends[2], ends[3]
        );
        let bytes = file(&header, data);
        prop_assert_eq!(open_weights(&bytes).is_ok(), safetensors::SafeTensors::deserialize(&bytes).is_ok());
    }

    #[test]
    fn random_indices(index in json_like(), name in "[./a-z\\\\]{0,12}") {
        let _ = open_sharded(&index);
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        prop_assert!(open_sharded(&index).is_err());
    }
}
