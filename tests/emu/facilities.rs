//! What CUDA offers on every architecture from sm_80 on, each piece against a plain loop.

use super::{blank, device, devices, download, launch, upload, whole};
use half::bf16;
use pellucid::backend::gpu::{
    Argument::{self, Address as At, F32, I32},
    Emulator, Launch, Runtime, Settings,
};

#[test]
fn grids_reach_every_element_and_no_other() {
    for device in devices() {
        for n in [1, 31, 64, 100, 257] {
            let (x, y) = (whole(n, 1), whole(n, 2));
            let (at_x, at_y) = (upload(&device, &x), upload(&device, &y));
            let arguments = [At(at_y), At(at_x), F32(3.0), I32(n as i32), I32(0)];
            launch(&device, "test_axpy", [n.div_ceil(64) as u32, 64], 0, &arguments).unwrap();
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| y + 3.0 * x).collect();
            assert_eq!(download::<f32>(&device, at_y, n), expected, "n = {n}");
        }
    }
}

#[test]
fn blocks_reduce_through_shuffles_and_shared_memory() {
    for device in devices() {
        for (n, threads) in [(1000, 128), (64, 64), (33, 32), (5000, 1024)] {
            let x = whole(n, 3);
            let blocks = n.div_ceil(threads);
            let (at, out) = (upload(&device, &x), blank::<f32>(&device, blocks));
            let shared = (threads / 32 + 1) as u32 * 4;
            let arguments = [At(out), At(at), I32(n as i32), I32(0)];
            launch(&device, "test_reduce", [blocks as u32, threads as u32], shared, &arguments).unwrap();
            let expected: Vec<f32> = x.chunks(threads).map(|part| part.iter().sum()).collect();
            assert_eq!(download::<f32>(&device, out, blocks), expected, "n = {n}, threads = {threads}");
        }
    }
}

#[test]
fn a_warp_transposes_between_two_syncwarps() {
    for device in devices() {
        let input: Vec<i32> = (0..1024).collect();
        let (at, out) = (upload(&device, &input), blank::<i32>(&device, 1024));
        launch(&device, "test_transpose", [1, 32], 32 * 33 * 4, &[At(out), At(at), I32(0)]).unwrap();
        let expected: Vec<i32> = (0..1024).map(|i| i % 32 * 32 + i / 32).collect();
        assert_eq!(download::<i32>(&device, out, 1024), expected);
    }
}

#[test]
fn atomics_count_over_threads_and_blocks() {
    for device in devices() {
        let values: Vec<i32> = (0..777).map(|i| i * i % 16).collect();
        let (at, counts) = (upload(&device, &values), upload(&device, &[0i32; 16]));
        let arguments = [At(counts), At(at), I32(777), I32(0)];
        launch(&device, "test_histogram", [7, 128], 64, &arguments).unwrap();
        let count = |v| values.iter().filter(|&&x| x == v).count() as i32;
        assert_eq!(download::<i32>(&device, counts, 16), (0..16).map(count).collect::<Vec<_>>());
    }
}

#[test]
fn the_last_block_sees_what_all_blocks_published() {
    for device in devices() {
        let (out, parts, done) =
            (blank::<f32>(&device, 1), blank::<f32>(&device, 9), upload(&device, &[0i32]));
        launch(&device, "test_last_block", [9, 64], 4, &[At(out), At(parts), At(done), I32(0)]).unwrap();
        assert_eq!(download::<f32>(&device, out, 1), [45.0]);
    }
}

#[test]
fn named_barriers_hand_over_between_warps() {
    for device in devices() {
        let out = blank::<i32>(&device, 32);
        launch(&device, "test_named", [1, 64], 128, &[At(out), I32(5), I32(0)]).unwrap();
        let expected: Vec<i32> = (0..32).map(|lane| 10 * (31 - lane)).collect();
        assert_eq!(download::<i32>(&device, out, 32), expected);
    }
}

#[test]
fn shuffles_stay_in_their_sections() {
    for device in devices() {
        for (operand, width) in [(0, 32), (1, 32), (5, 8), (3, 4), (16, 32), (7, 16)] {
            let out = blank::<i32>(&device, 160);
            launch(&device, "test_shuffles", [1, 32], 0, &[At(out), I32(operand), I32(width)]).unwrap();
            let got = download::<i32>(&device, out, 160);
            for lane in 0..32 {
                let (first, last) = (lane / width * width, lane / width * width + width - 1);
                let kept = |from: i32, good: bool| if good { from } else { lane };
                let expected = [
                    first + operand % width,
                    kept(lane - operand, lane - operand >= first),
                    kept(lane + operand, lane + operand <= last),
                    kept(lane ^ operand, lane ^ operand <= last),
                    (0..32).filter(|l| l % 3 == 0).map(|l| 1 << l).sum::<i64>() as u32 as i32,
                ];
                let found: Vec<i32> = (0..5).map(|kind| got[kind * 32 + lane as usize]).collect();
                assert_eq!(found, expected, "lane {lane}, operand {operand}, width {width}");
            }
        }
    }
}

#[test]
fn asynchronous_copies_pass_through_two_buffers() {
    for device in devices() {
        for n in [1, 3, 255, 256, 1000] {
            let input = whole(n, 4);
            let (at, out) = (upload(&device, &input), blank::<f32>(&device, n));
            let arguments = [At(out), At(at), I32(n as i32), I32(0)];
            launch(&device, "test_copy", [1, 64], 2 * 64 * 16, &arguments).unwrap();
            assert_eq!(download::<f32>(&device, out, n), input, "n = {n}");
        }
    }
}

#[test]
fn matrix_loads_and_products_follow_their_fragments() {
    for device in devices() {
        for (k, turned) in [(16, 0), (16, 1), (80, 0), (80, 1)] {
            let (a, b) = (whole(16 * k, 5), whole(8 * k, 6));
            let expected: Vec<f32> = (0..128)
                .map(|i| {
                    let b = |j: usize| if turned == 1 { b[j * 8 + i % 8] } else { b[i % 8 * k + j] };
                    (0..k).map(|j| a[i / 8 * k + j] * b(j)).sum()
                })
                .collect();
            let half = |v: &[f32]| v.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
            let (at_a, at_b) = (upload(&device, &half(&a)), upload(&device, &half(&b)));
            let d = blank::<f32>(&device, 128);
            let arguments = [At(d), At(at_a), At(at_b), I32(k as i32), I32(turned), I32(0)];
            launch(&device, "test_mma", [1, 32], 1024, &arguments).unwrap();
            assert_eq!(download::<f32>(&device, d, 128), expected, "k = {k}, turned = {turned}");
        }
    }
}

#[test]
fn without_checks_results_are_the_same_and_faults_are_still_reported() {
    let device = Emulator::new(Settings { checked: false, ..Settings::default() }).unwrap();
    let input = whole(1000, 7);
    let (at, out) = (upload(&device, &input), blank::<f32>(&device, 1000));
    launch(&device, "test_copy", [1, 64], 2 * 64 * 16, &[At(out), At(at), I32(1000), I32(0)]).unwrap();
    assert_eq!(download::<f32>(&device, out, 1000), input);
    for again in [false, true] {
        // One element too many: y ends at a page that cannot be touched.
        let arguments = [At(out), At(at), F32(1.0), I32(1000), I32(1)];
        let report = launch(&device, "test_axpy", [16, 64], 0, &arguments).unwrap_err();
        assert!(report.starts_with("launch: out-of-bounds: "), "{report}");
        assert!(
            report.contains("0 bytes past an allocation of 4000 bytes; kernel test_axpy, block (15, 0, 0)"),
            "{report}"
        );
        assert!(report.contains("thread (40, 0, 0)"), "again {again}: {report}");
    }
    device.release(at).unwrap();
    let report =
        launch(&device, "test_axpy", [1, 64], 0, &[At(out), At(at), F32(1.0), I32(9), I32(0)]).unwrap_err();
    assert!(report.contains("out-of-bounds"), "{report}");
}

#[test]
fn captured_launches_run_when_replayed() {
    let device = device();
    let (x, y) = (upload(&device, &[2.0f32]), upload(&device, &[1.0f32]));
    let arguments: [Argument; 5] = [At(y), At(x), F32(10.0), I32(1), I32(0)];
    let step =
        Launch { kernel: "test_axpy", grid: [1; 3], block: [32, 1, 1], shared: 0, arguments: &arguments };
    let graph = device.capture(&mut || device.launch(&step)).unwrap();
    assert_eq!(download::<f32>(&device, y, 1), [1.0]);
    device.replay(&graph).unwrap();
    device.replay(&graph).unwrap();
    assert_eq!(download::<f32>(&device, y, 1), [41.0]);
}

#[test]
fn a_graph_keeps_its_memory_and_what_it_uploads() {
    let device = device();
    let y = upload(&device, &[1.0f32]);
    let free = device.free_memory().unwrap();
    let graph = device.capture(&mut || {
        let x = device.alloc(4)?;
        device.upload(x, bytemuck::bytes_of(&3.0f32))?;
        let arguments = [At(y), At(x), F32(10.0), I32(1), I32(0)];
        let step =
            Launch { kernel: "test_axpy", grid: [1; 3], block: [32, 1, 1], shared: 0, arguments: &arguments };
        device.launch(&step)?;
        for refused in
            [device.download(y, &mut [0; 4]), device.sync(), device.capture(&mut || Ok(())).map(drop)]
        {
            assert!(refused.unwrap_err().to_string().contains("being captured"));
        }
        device.release(x)
    });
    let graph = graph.unwrap();
    device.replay(&graph).unwrap();
    device.replay(&graph).unwrap();
    assert_eq!(download::<f32>(&device, y, 1), [61.0]);
    assert!(device.free_memory().unwrap() < free);
    drop(graph);
    assert_eq!(device.free_memory().unwrap(), free);
}

#[test]
fn what_lies_outside_of_memory_is_refused() {
    let device = device();
    let at = upload(&device, &[0u8; 100]);
    assert!(device.upload(at, &[0; 101]).is_err());
    assert!(device.download(at.plus(90), &mut [0; 11]).is_err());
    assert!(device.download(at.plus(90), &mut [0; 10]).is_ok());
    assert!(device.release(at.plus(16)).is_err());
    device.release(at).unwrap();
    assert!(device.release(at).is_err());
    assert!(device.download(at, &mut [0; 1]).is_err());
    assert!(device.alloc(usize::MAX).is_err());
}

/// More is allocated in the course of time than there are addresses; what is released comes back, what is not stays.
#[test]
fn memory_goes_round() {
    let device = device();
    let kept: Vec<_> = (0..5u32).map(|value| upload(&device, &[value; 3])).collect();
    let free = device.free_memory().unwrap();
    for round in 0..40 {
        let large = device.alloc(150 << 20).unwrap();
        let small = upload(&device, &[round]);
        device.release(large).unwrap();
        assert_eq!(download::<i32>(&device, small, 1), [round]);
        device.release(small).unwrap();
        assert!(device.release(small).is_err(), "released twice");
    }
    for (value, &at) in (0..).zip(&kept) {
        assert_eq!(download::<u32>(&device, at, 3), [value; 3]);
    }
    assert_eq!(device.free_memory().unwrap(), free);
    assert!(device.alloc(free + 1).is_err());
}
