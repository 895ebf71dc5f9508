//! `kernels/rows.cu`: every element arrives, and nothing else changes.

use super::{gpu, gpus, normal, on_device, poisoned, read};
use half::bf16;
use pellucid::{
    backend::Backend,
    tensor::{Dtype, Tensor},
};

#[test]
fn rows_are_gathered_and_scattered_over_ragged_sizes() {
    for gpu in gpus() {
        for columns in [1, 7, 8, 64, 130, 264, 1001, 8200] {
            let table = normal(13 * columns, 1);
            let picks = [12, 0, 5, 5, 1, 12, 3];
            let index = on_device(&gpu, &[7], &picks);
            let mut out = poisoned(&gpu, &[7, columns]);
            gpu.gather_rows(&mut out, &on_device(&gpu, &[13, columns], &table), &index).unwrap();
            let row = |row: i32| &table[row as usize * columns..][..columns];
            assert_eq!(read::<bf16>(&gpu, &out), picks.map(row).concat(), "{columns} columns");

            // A table of gradients is f32, and rounded on its way out.
            let wide: Vec<f32> = table.iter().map(|value| value.to_f32() * 1.003).collect();
            let wide_table = gpu.upload(Tensor::from_slice(&[13, columns], &wide).unwrap()).unwrap();
            let mut out = poisoned(&gpu, &[7, columns]);
            gpu.gather_rows(&mut out, &wide_table, &index).unwrap();
            let rounded: Vec<bf16> = wide.iter().map(|&value| bf16::from_f32(value)).collect();
            let row_of = |row: i32| &rounded[row as usize * columns..][..columns];
            assert_eq!(read::<bf16>(&gpu, &out), picks.map(row_of).concat(), "{columns} columns in f32");

            let places = [4, 9, 0];
            let before = normal(10 * columns, 2);
            let mut out = on_device(&gpu, &[10, columns], &before);
            let source = on_device(&gpu, &[3, columns], &table[..3 * columns]);
            gpu.scatter_rows(&mut out, &source, &on_device(&gpu, &[3], &places)).unwrap();
            let mut expected = before;
            for (from, to) in places.into_iter().enumerate() {
                expected[to as usize * columns..][..columns].copy_from_slice(row(from as i32));
            }
            assert_eq!(read::<bf16>(&gpu, &out), expected, "{columns} columns");
        }
    }
}

#[test]
fn keys_and_values_go_to_their_slots_and_nowhere_else() {
    for gpu in gpus() {
        for [kv_heads, page_len, head_dim] in [[1, 1, 8], [2, 16, 64], [3, 5, 20], [2, 3, 7], [1, 4, 272]] {
            let (pages, slots) = (4, [2 * page_len as i32, 0, 4 * page_len as i32 - 1, page_len as i32]);
            let width = kv_heads * head_dim;
            let pool = [pages, kv_heads, page_len, head_dim];
            let size = pages * width * page_len;
            let (k, v) = (normal(4 * width, 1), normal(4 * width, 2));
            let before = [normal(size, 3), normal(size, 4)];
            let mut pools = [&before[0], &before[1]].map(|before| on_device(&gpu, &pool, before));
            let [k_pool, v_pool] = &mut pools;
            let [new_k, new_v] = [&k, &v].map(|new| on_device(&gpu, &[4, kv_heads, head_dim], new));
            gpu.kv_append(k_pool, v_pool, &new_k, &new_v, &on_device(&gpu, &[4], &slots)).unwrap();
            for ((pool, mut expected), new) in pools.iter().zip(before).zip([&k, &v]) {
                for (row, &slot) in slots.iter().enumerate() {
                    let (page, offset) = (slot as usize / page_len, slot as usize % page_len);
                    for head in 0..kv_heads {
                        let to = ((page * kv_heads + head) * page_len + offset) * head_dim;
                        let from = (row * kv_heads + head) * head_dim;
                        expected[to..to + head_dim].copy_from_slice(&new[from..from + head_dim]);
                    }
                }
                assert_eq!(read::<bf16>(&gpu, pool), expected, "{pool:?}");
            }
        }
    }
}

#[test]
fn no_rows_is_no_launch_and_other_dtypes_are_refused() {
    let gpu = gpu();
    let none = on_device::<i32>(&gpu, &[0], &[]);
    let table = on_device(&gpu, &[2, 8], &normal(16, 1));
    gpu.gather_rows(&mut poisoned(&gpu, &[0, 8]), &table, &none).unwrap();
    let wide = gpu.upload(Tensor::zeros(Dtype::F32, &[2, 8]).unwrap()).unwrap();
    let index = on_device(&gpu, &[1], &[0]);
    let mut out = poisoned(&gpu, &[2, 8]);
    let error = gpu.scatter_rows(&mut out, &wide, &on_device(&gpu, &[2], &[0, 1])).unwrap_err().to_string();
    assert!(
        error.contains("scatter_rows") && error.contains("f32[2, 8]") && error.contains("bf16"),
        "{error}"
    );
    let mut out = gpu.upload(Tensor::zeros(Dtype::F32, &[1, 8]).unwrap()).unwrap();
    let error = gpu.gather_rows(&mut out, &table, &index).unwrap_err().to_string();
    assert!(error.contains("gather_rows: out") && error.contains("f32[1, 8]"), "{error}");
}
