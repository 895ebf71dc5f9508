//! Boxes of every rank and swizzle, and wgmma operands in every layout, against plain loops over the documented ones.

use super::{blank, device, devices, download, launch, upload, whole};
use half::bf16;
use pellucid::backend::gpu::{
    Address,
    Argument::{self, Address as At, I32, I64},
    Emulator, Runtime, TensorShape,
};

fn map(device: &Emulator, address: Address, sizes: &[usize], tile: &[u32], swizzle: usize) -> Argument {
    map_of(device, 2, address, sizes, tile, swizzle)
}

fn map_of(
    device: &Emulator,
    element: u32,
    address: Address,
    sizes: &[usize],
    tile: &[u32],
    swizzle: usize,
) -> Argument {
    let strides: Vec<u64> =
        (1..sizes.len()).map(|i| sizes[..i].iter().product::<usize>() as u64 * u64::from(element)).collect();
    let sizes: Vec<u64> = sizes.iter().map(|&size| size as u64).collect();
    let swizzle = swizzle as u32;
    let shape = TensorShape { address, element, sizes: &sizes, strides: &strides, tile, swizzle };
    Argument::TensorMap(device.tensor_map(&shape).unwrap())
}

/// Where the 16-byte piece at this offset lies: within 8 rows of the span, piece c of row r is at c ^ r, rows narrower
/// than 128 bytes taking turns of as many as share 128.
fn swizzled(offset: usize, span: usize) -> usize {
    if span == 0 {
        return offset;
    }
    let (row, piece) = (offset / span, offset % span / 16);
    let turn = row / (128 / span) % (span / 16);
    row * span + (piece ^ turn) * 16 + offset % 16
}

#[test]
fn boxes_of_every_rank_arrive_swizzled_with_zeros_outside() {
    // Sizes, box and where it starts, innermost first; spans 0, 32, 64, 128 by the box's row.
    let cases: [(&[usize], &[u32], [i32; 4]); 9] = [
        (&[40, 10], &[16, 16], [32, -3, 0, 0]),
        (&[40, 10], &[32, 8], [8, 5, 0, 0]),
        (&[72, 10], &[64, 8], [16, 2, 0, 0]),
        (&[24, 5, 7], &[16, 4, 3], [16, 3, -1, 0]),
        (&[64, 5, 7], &[32, 3, 5], [0, -1, 4, 0]),
        (&[64, 3, 70], &[64, 1, 16], [0, 2, 60, 0]),
        (&[16, 3, 4, 5], &[16, 2, 3, 2], [0, 2, -1, 4]),
        (&[32, 3, 4, 5], &[32, 2, 2, 3], [0, 0, 3, 3]),
        (&[80, 2, 4, 3], &[64, 2, 4, 2], [64, 1, 0, -1]),
    ];
    for (index, device) in devices().iter().enumerate() {
        for (sizes, tile, at) in cases {
            let rank = sizes.len();
            let values: Vec<u16> = (1..=sizes.iter().product::<usize>()).map(|i| i as u16).collect();
            let source = upload(device, &values);
            let count = tile.iter().product::<u32>() as usize;
            let row = tile[0] as usize * 2;
            for swizzle in [0, row] {
                let out = blank::<u16>(device, count);
                let coordinates = at.map(I32);
                let map = map(device, source, sizes, tile, swizzle);
                let bytes = I32(count as i32 * 2);
                let arguments = [&[At(out), map, I32(rank as i32), bytes][..], &coordinates].concat();
                launch(device, "test_box", [1, 32], count as u32 * 2 + 16, &arguments).unwrap();
                let got: Vec<u16> = download(device, out, count);
                for i in 0..count {
                    let (mut rest, mut flat, mut stride, mut inside) = (i, 0, 1, true);
                    for d in 0..rank {
                        let c = i64::from(at[d]) + (rest % tile[d] as usize) as i64;
                        rest /= tile[d] as usize;
                        inside &= (0..sizes[d] as i64).contains(&c);
                        flat += c * stride;
                        stride *= sizes[d] as i64;
                    }
                    let expected = if inside { values[flat as usize] } else { 0 };
                    let found = got[swizzled(i * 2, swizzle) / 2];
                    assert_eq!(
                        found, expected,
                        "order {index}, {sizes:?} by {tile:?} at {at:?}, span {swizzle}: {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn stored_boxes_are_unswizzled_and_clipped() {
    for device in devices() {
        for (swizzle, width) in [(0, 24), (32, 16), (64, 32), (128, 64)] {
            let (rows, columns, at) = (20, 72, [16, 10]);
            let image: Vec<u16> = (0..width * 16).map(|i| i as u16).collect();
            let (source, out) = (upload(&device, &image), upload(&device, &vec![9999u16; rows * columns]));
            let map = map(&device, out, &[columns, rows], &[width as u32, 16], swizzle);
            let arguments = [At(source), map, I32(image.len() as i32 * 2), I32(at[0]), I32(at[1])];
            launch(&device, "test_box_store", [1, 32], image.len() as u32 * 2, &arguments).unwrap();
            let got: Vec<u16> = download(&device, out, rows * columns);
            for (i, &got) in got.iter().enumerate() {
                let (row, column) = ((i / columns).wrapping_sub(10), (i % columns).wrapping_sub(16));
                let inside = row < 16 && column < width;
                let expected =
                    if inside { image[swizzled((row * width + column) * 2, swizzle) / 2] } else { 9999 };
                assert_eq!(got, expected, "span {swizzle}, row {}, column {}", i / columns, i % columns);
            }
        }
    }
}

/// An operand of 64 k in shared memory: its bytes, its descriptor without the address, and where each step starts.
struct Operand {
    image: Vec<u8>,
    descriptor: u64,
    starts: [usize; 4],
}

fn descriptor(leading: usize, stride: usize, span: usize) -> u64 {
    let mode = match span {
        0 => 0,
        128 => 1,
        64 => 2,
        _ => 3,
    };
    (leading as u64 / 16) << 16 | (stride as u64 / 16) << 32 | mode << 62
}

impl Operand {
    /// `value(mn, k)` for mn below `extent`, k-major or MN-major, in rows of `span` bytes; without a swizzle in 8 by 8
    /// core matrices, those along mn next to each other or (`turned`) those along k.
    fn new(
        extent: usize,
        mn_major: bool,
        span: usize,
        turned: bool,
        value: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let mut image = vec![0; extent * 64 * 2];
        let mut put = |offset: usize, mn: usize, k: usize| {
            let at = swizzled(offset, span);
            image[at..at + 2].copy_from_slice(&bf16::from_f32(value(mn, k)).to_le_bytes());
        };
        let across = span / 2;
        let (cores_mn, cores_k) = if turned { (8 * 128, 128) } else { (128, extent / 8 * 128) };
        for mn in 0..extent {
            for k in 0..64 {
                let offset = match (span, mn_major) {
                    (0, false) => mn / 8 * cores_mn + k / 8 * cores_k + mn % 8 * 16 + k % 8 * 2,
                    (0, true) => mn / 8 * cores_mn + k / 8 * cores_k + k % 8 * 16 + mn % 8 * 2,
                    // One box after another, as TMA leaves them: `across` elements by all rows.
                    (_, false) => k / across * (extent * span) + mn * span + k % across * 2,
                    (_, true) => mn / across * (64 * span) + k * span + mn % across * 2,
                };
                put(offset, mn, k);
            }
        }
        let (descriptor, starts) = match (span, mn_major) {
            (0, _) => (descriptor(cores_k, cores_mn, 0), [0, 1, 2, 3].map(|step| step * 2 * cores_k)),
            (_, false) => {
                let start = |step: usize| step * 16 / across * (extent * span) + step * 16 % across * 2;
                (descriptor(0, 8 * span, span), [0, 1, 2, 3].map(start))
            }
            (_, true) => (descriptor(64 * span, 8 * span, span), [0, 1, 2, 3].map(|step| step * 16 * span)),
        };
        Operand { image, descriptor, starts }
    }
}

#[test]
fn wgmma_finds_operands_in_every_layout() {
    let kinds: Vec<(bool, usize, bool)> = [(0, false), (0, true), (32, false), (64, false), (128, false)]
        .into_iter()
        .flat_map(|(span, turned)| [false, true].map(|mn_major| (mn_major, span, turned)))
        .collect();
    let device = device();
    for width in [64, 96, 128, 192] {
        let (a, b) = (whole(64 * 64, 1), whole(width * 64, 2));
        let expected: Vec<f32> = (0..64 * width)
            .map(|i| (0..64).map(|k| a[i / width * 64 + k] * b[i % width * 64 + k]).sum())
            .collect();
        for (i, &(a_mn, span_a, turned_a)) in kinds.iter().enumerate() {
            // With every layout of B at N = 128, else with some.
            for (j, &(b_mn, span_b, turned_b)) in kinds.iter().enumerate() {
                let whole_rows = !b_mn || span_b == 0 || width % (span_b / 2) == 0;
                if !whole_rows || (width != 128 && (i + j) % 4 != 0) {
                    continue;
                }
                let first = Operand::new(64, a_mn, span_a, turned_a, |mn, k| a[mn * 64 + k]);
                let second = Operand::new(width, b_mn, span_b, turned_b, |mn, k| b[mn * 64 + k]);
                let starts: Vec<i32> = (first.starts.iter().copied())
                    .chain(second.starts.iter().map(|start| start + first.image.len()))
                    .map(|start| start as i32)
                    .collect();
                let image = [first.image, second.image].concat();
                let d = blank::<f32>(&device, 64 * width);
                let arguments = [
                    At(d),
                    At(upload(&device, &image)),
                    I32(image.len() as i32),
                    I64(first.descriptor as i64),
                    I64(second.descriptor as i64),
                    At(upload(&device, &starts)),
                    I32(i32::from(a_mn)),
                    I32(i32::from(b_mn)),
                ];
                let kernel = format!("test_layout_{width}");
                launch(&device, &kernel, [1, 128], image.len() as u32, &arguments).unwrap();
                let got: Vec<f32> = download(&device, d, 64 * width);
                assert!(got == expected, "{kernel}: A {:?}, B {:?}", kinds[i], kinds[j]);
            }
        }
    }
}

#[test]
fn one_lane_of_a_warp_is_elected() {
    for device in devices() {
        let out = blank::<i32>(&device, 8);
        launch(&device, "test_elect", [1, 128], 512, &[At(out)]).unwrap();
        let sums = (0..4).map(|warp| (warp * 32..warp * 32 + 32).sum::<i32>());
        assert_eq!(download::<i32>(&device, out, 8), [1; 4].into_iter().chain(sums).collect::<Vec<_>>());
    }
}

#[test]
fn a_barrier_is_given_up_before_its_memory_has_another_use() {
    for device in devices() {
        let run = |bug| {
            let out = blank::<i32>(&device, 64);
            let outcome = launch(&device, "test_inval", [1, 64], 16, &[At(out), I32(bug)]);
            (outcome, download::<i32>(&device, out, 64))
        };
        let (outcome, numbers) = run(0);
        outcome.unwrap();
        assert_eq!(numbers, [7; 64]);
        for (bug, what) in [(1, "initialised twice"), (2, "not initialised"), (3, "overwritten")] {
            let report = run(bug).0.unwrap_err();
            assert!(report.starts_with("launch: mbarrier: ") && report.contains(what), "bug {bug}: {report}");
        }
    }
}

#[track_caller]
fn reported(rules: &[&str], report: Result<(), String>) {
    let report = report.expect_err("it is not reported");
    let named = rules.iter().any(|rule| report.starts_with(&format!("launch: {rule}: ")));
    assert!(named, "expected {rules:?}, got {report}");
}

#[test]
fn one_buffer_serves_tile_after_tile() {
    for device in devices() {
        let run = |bug| {
            let matrix: Vec<f32> = (0..30 * 32).map(|i| i as f32).collect();
            let at = upload(&device, &matrix);
            let map = map_of(&device, 4, at, &[32, 30], &[32, 8], 0);
            let outcome = launch(&device, "test_tiles", [1, 64], 1040, &[map, I32(4), I32(bug)]);
            (outcome, download::<f32>(&device, at, 30 * 32))
        };
        let (outcome, matrix) = run(0);
        outcome.unwrap();
        assert!(matrix.iter().enumerate().all(|(i, &v)| v == i as f32 + 1.0));
        reported(&["race"], run(1).0);
        reported(&["not-waited", "race", "mbarrier"], run(2).0);
        reported(&["missing-fence", "race", "not-waited"], run(3).0);
        reported(&["not-waited"], run(4).0);
    }
}

#[test]
fn results_replace_operands_when_all_have_read_them() {
    for device in devices() {
        let run = |bug| {
            let d = blank::<f32>(&device, 4096);
            let outcome = launch(&device, "test_over", [1, 256], 64 * 64 * 4, &[At(d), I32(bug)]);
            (outcome, download::<f32>(&device, d, 4096))
        };
        let (outcome, d) = run(0);
        outcome.unwrap();
        assert!(d.iter().enumerate().all(|(i, &v)| v == f32::from(i / 64 == i % 64)));
        reported(&["race", "missing-fence"], run(1).0);
        reported(&["uninitialised"], run(2).0);
    }
}
