//! What runs in a process that has the stand-in for a driver; `main.rs` starts each by its name.

use pellucid::{
    Result,
    backend::gpu::{Address, Argument, Cuda, Launch, Runtime, TensorShape},
};

fn open() -> Cuda {
    Cuda::open(0).unwrap()
}

fn upload(device: &Cuda, bytes: &[u8]) -> Address {
    let address = device.alloc(bytes.len()).unwrap();
    device.upload(address, bytes).unwrap();
    address
}

fn download(device: &Cuda, from: Address, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    device.download(from, &mut bytes).unwrap();
    bytes
}

/// Copies one row of 16 bytes, by the kernel that moves rows.
fn copy(device: &Cuda, to: Address, from: Address) -> Result<()> {
    let arguments = arguments(to, from);
    device.launch(&Launch {
        kernel: "copy_rows",
        grid: [1, 1, 1],
        block: [32, 1, 1],
        shared: 0,
        arguments: &arguments,
    })
}

/// copy_rows of one row.
fn arguments(to: Address, from: Address) -> [Argument; 7] {
    let null = Argument::Address(Address(0));
    let [to, from] = [to, from].map(Argument::Address);
    [to, from, null.clone(), null, Argument::I64(1), Argument::I32(8), Argument::I32(1)]
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn bytes_arrive_whatever_their_number() {
    let device = open();
    let pattern =
        |count: usize, seed: usize| (0..count).map(|i| (i * 31 / 7 + seed) as u8).collect::<Vec<u8>>();
    for count in [0, 1, 255, 4096, (4 << 20) - 1, 4 << 20, (9 << 20) + 7] {
        let bytes = pattern(count, count);
        let address = upload(&device, &bytes);
        assert!(download(&device, address, count) == bytes, "{count} bytes");
    }
    // Enough to go round the staging ring twice, from two threads, each in need of the context.
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let device = &device;
            scope.spawn(move || {
                let all: Vec<_> =
                    (0..150).map(|i| (i, upload(device, &pattern(100_001, seed + i)))).collect();
                for (i, address) in all {
                    assert!(download(device, address, 100_001) == pattern(100_001, seed + i), "upload {i}");
                    device.release(address).unwrap();
                }
            });
        }
    });
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn what_is_fetched_lands_as_it_was() {
    let device = open();
    let (short, long) = (upload(&device, &[1; 16]), upload(&device, &vec![7; 100_001]));
    let land = |landing, count: usize| {
        let mut bytes = vec![0; count];
        device.land(landing, &mut bytes).unwrap();
        bytes
    };
    let first = device.fetch(short, 16).unwrap();
    drop(device.fetch(short, 16).unwrap());
    device.upload(short, &[2; 16]).unwrap();
    let (second, third) = (device.fetch(short, 16).unwrap(), device.fetch(long, 100_001).unwrap());
    device.upload(short, &[3; 16]).unwrap();
    assert_eq!(land(second, 16), [2; 16], "the later one first");
    assert_eq!(land(first, 16), [1; 16]);
    assert_eq!(download(&device, short, 16), [3; 16]);
    assert!(land(third, 100_001) == vec![7; 100_001]);
    // Landing places are used again.
    for value in 0..20 {
        device.upload(short, &[value; 16]).unwrap();
        assert_eq!(land(device.fetch(short, 16).unwrap(), 16), [value; 16]);
    }
    let refused = device.capture(&mut || device.fetch(short, 16).map(drop));
    assert!(refused.unwrap_err().to_string().contains("being captured"));
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn a_graph_runs_again_in_memory_that_nobody_else_uses() {
    let device = open();
    let (x, y) = (upload(&device, &[1; 16]), upload(&device, &[0; 16]));
    let mut work = Address(0);
    let graph = device.capture(&mut || {
        work = device.alloc(16)?;
        copy(&device, work, x)?;
        copy(&device, y, work)?;
        device.release(work)
    });
    let graph = graph.unwrap();
    assert_eq!(download(&device, y, 16), [0; 16], "a capture runs nothing");
    let others: Vec<Address> = (0..8).map(|_| upload(&device, &[9; 16])).collect();
    assert!(!others.contains(&work));
    device.replay(&graph).unwrap();
    assert_eq!(download(&device, y, 16), [1; 16]);
    device.upload(x, &[2; 16]).unwrap();
    device.replay(&graph).unwrap();
    assert_eq!(download(&device, y, 16), [2; 16]);
    assert!(others.iter().all(|&other| download(&device, other, 16) == [9; 16]));
    assert!((0.0..60.0).contains(&device.seconds(&graph).unwrap()));
    drop(graph);
    let graph = device.capture(&mut || {
        let constant = device.alloc(16)?;
        device.upload(constant, &Vec::from([7; 16]))?;
        copy(&device, y, constant)?;
        device.release(constant)
    });
    let graph = graph.unwrap();
    assert_eq!(download(&device, y, 16), [2; 16], "uploads are captured too");
    for _ in 0..2 {
        device.replay(&graph).unwrap();
        assert_eq!(download(&device, y, 16), [7; 16]);
        device.upload(y, &[0; 16]).unwrap();
    }
    drop(graph);
    assert_eq!(device.alloc(16).unwrap(), work, "its memory is free again");
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn a_capture_that_fails_leaves_the_device_as_it_was() {
    let device = open();
    let (x, y) = (upload(&device, &[1; 16]), upload(&device, &[0; 16]));
    let refusals = device.capture(&mut || {
        let refused = [device.download(x, &mut [0]), device.sync(), device.capture(&mut || Ok(())).map(drop)];
        assert!(
            refused.iter().all(|r| r.as_ref().unwrap_err().to_string().contains("being captured")),
            "{refused:?}"
        );
        copy(&device, y, x)?;
        Err(pellucid::Error::caller("body", "changed its mind"))
    });
    assert_eq!(refusals.unwrap_err().to_string(), "body: changed its mind");
    assert_eq!(download(&device, y, 16), [0; 16]);
    copy(&device, y, x).unwrap();
    assert_eq!(download(&device, y, 16), [1; 16]);
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn a_failed_kernel_is_named_by_every_later_call() {
    let device = open();
    let (x, y) = (upload(&device, &[1; 16]), upload(&device, &[0; 16]));
    copy(&device, y, x).unwrap();
    device.sync().unwrap();
    let graph = device.capture(&mut || copy(&device, y, x)).unwrap();
    copy(&device, y, x).unwrap();
    let first = device.sync().unwrap_err().to_string();
    let lost = first.strip_prefix("sync: ").unwrap();
    assert!(lost.contains("ILLEGAL_ADDRESS") && lost.contains("kernel copy_rows failed"), "{lost}");
    for later in [
        device.sync(),
        copy(&device, y, x),
        device.upload(x, &[1]),
        device.download(x, &mut [1]),
        device.alloc(1).map(drop),
        device.release(x),
        device.replay(&graph),
        device.capture(&mut || Ok(())).map(drop),
        device.free_memory().map(drop),
    ] {
        assert_eq!(later.unwrap_err().to_string(), format!("cuda: {lost}"));
    }
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn memory_nobody_uses_goes_back_before_room_is_refused() {
    const MIB: usize = 1 << 20;
    let device = open();
    assert_eq!(device.free_memory().unwrap(), 200 * MIB);
    let first = device.alloc(100 * MIB).unwrap();
    device.release(first).unwrap();
    assert_eq!(device.free_memory().unwrap(), 200 * MIB);
    device.alloc(150 * MIB).unwrap();
    let refused = device.alloc(100 * MIB).unwrap_err().to_string();
    assert!(
        refused.contains("no room for 104857600 more bytes: 52428800 of the device's 209715200"),
        "{refused}"
    );
    let odd = device.alloc(1_000_001).unwrap();
    device.upload(odd, &vec![7; 1_000_001]).unwrap();
    assert_eq!(download(&device, odd, 3), [7; 3]);
    assert!(device.alloc(usize::MAX).is_err() && device.release(Address(1)).is_err());
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn what_a_kernel_does_not_take_is_refused_before_it_runs() {
    let device = open();
    let (x, y) = (upload(&device, &[1; 16]), upload(&device, &[0; 16]));
    let all = arguments(y, x);
    let good = Launch { kernel: "copy_rows", grid: [1, 1, 1], block: [32, 1, 1], shared: 0, arguments: &all };
    let mut swapped = all.clone();
    swapped.swap(4, 5);
    for (launch, part) in [
        (
            Launch { arguments: &all[..6], ..good.clone() },
            "given arguments of [8, 8, 8, 8, 8, 4] bytes and takes [8",
        ),
        (Launch { arguments: &swapped, ..good.clone() }, "given arguments of [8, 8, 8, 8, 4, 8, 4]"),
        (Launch { kernel: "no_such", ..good.clone() }, "no kernel for this GPU is named \"no_such\" in "),
        (Launch { kernel: "a\0b", ..good.clone() }, "no kernel for this GPU"),
        (
            Launch { shared: 300_000, ..good.clone() },
            "copy_rows needs 300000 bytes of shared memory and Stand-in has",
        ),
        (Launch { grid: [0, 1, 1], ..good.clone() }, "copy_rows, grid (0, 1, 1)"),
    ] {
        let error = device.launch(&launch).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(download(&device, y, 16), [0; 16]);
    device.launch(&Launch { shared: 100_000, ..good }).unwrap();
    assert_eq!(download(&device, y, 16), [1; 16], "shared memory above 48 KiB was asked for");

    let sizes = [64, 32];
    let shape =
        TensorShape { address: x, element: 2, sizes: &sizes, strides: &[128], tile: &[64, 32], swizzle: 128 };
    device.tensor_map(&shape).unwrap();
    assert!(device.tensor_map(&TensorShape { strides: &[120], ..shape }).is_err());
}

/// What a device says of a kernel that is for Hopper alone, given nothing.
fn ask_for_twin() -> String {
    let launch = Launch { kernel: "linear_sm90", grid: [1; 3], block: [1; 3], shared: 0, arguments: &[] };
    open().launch(&launch).unwrap_err().to_string()
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn twins_are_found_on_hopper() {
    assert!(ask_for_twin().contains("was given arguments of []"));
}

#[test]
#[ignore = "main.rs starts it with a driver"]
fn twins_are_missing_elsewhere() {
    assert!(ask_for_twin().contains("no kernel for this GPU is named \"linear_sm90\""));
}
