//! The optimiser against the f64 oracle.

use crate::harness::{Random, backends, compare, poisoned, same_bits, wide};
use pellucid::{
    backend::{AdamwParameter, AdamwSettings},
    tensor::{Dtype, Tensor},
};

#[test]
fn the_optimiser_equals_the_oracle() {
    let mut random = Random(29);
    for backend in backends() {
        let shapes: [&[usize]; 3] = [&[1], &[33, 7], &[40_000]];
        let state = shapes.map(|shape| [(); 4].map(|()| random.tensor(Dtype::F32, shape)));
        for step in [1, 1000] {
            compare("sq_norm, adamw", &backend, |backend, activation| {
                let mut held: Vec<[Tensor; 4]> = state
                    .iter()
                    .map(|tensors| tensors.each_ref().map(|tensor| wide(tensor, activation)))
                    .collect();
                for tensors in &mut held {
                    // A mean of squares is not below 0.
                    let squares: Vec<f64> = tensors[2].to_f64().iter().map(|v| v * v).collect();
                    let shape = tensors[2].shape().to_vec();
                    tensors[2] = Tensor::from_slice(&shape, &squares).unwrap().converted(activation).unwrap();
                }
                let gradients: Vec<&Tensor> = held.iter().map(|tensors| &tensors[3]).collect();
                let mut sums = poisoned(activation, &[3]);
                backend.sq_norm(&mut sums, &gradients).unwrap();
                let mut weights = shapes.map(|shape| poisoned(activation, shape));
                let mut parameters: Vec<AdamwParameter<'_>> = held
                    .iter_mut()
                    .zip(&mut weights)
                    .zip([0.1, 0.0, 0.0])
                    .map(|(([master, first, second, gradient], weight), decay)| AdamwParameter {
                        master,
                        first,
                        second,
                        gradient,
                        weight: Some(weight),
                        decay,
                    })
                    .collect();
                let settings = AdamwSettings {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    step,
                    scale: 0.3,
                };
                backend.adamw(&mut parameters, &settings).unwrap();
                let changed = held.iter().flat_map(|[master, first, second, _]| [master, first, second]);
                changed.chain(&weights).chain([&sums]).cloned().collect()
            });
        }
    }
}

#[test]
fn a_weight_is_its_master_rounded() {
    let mut random = Random(30);
    let gradient = random.tensor(Dtype::F32, &[1000]);
    for backend in backends() {
        let mut master = random.tensor(Dtype::F32, &[1000]);
        let [mut first, mut second] = [(); 2].map(|()| Tensor::zeros(Dtype::F32, &[1000]).unwrap());
        let mut weight = poisoned(Dtype::BF16, &[1000]);
        let parameter = AdamwParameter {
            master: &mut master,
            first: &mut first,
            second: &mut second,
            gradient: &gradient,
            weight: Some(&mut weight),
            decay: 0.0,
        };
        let settings =
            AdamwSettings { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, step: 1, scale: 1.0 };
        backend.adamw(&mut [parameter], &settings).unwrap();
        same_bits("weight", &weight, &master.converted(Dtype::BF16).unwrap());
    }
}

#[test]
fn zero_is_zero() {
    for backend in backends() {
        let mut tensor = poisoned(Dtype::F32, &[7, 3]);
        backend.zero(&mut tensor).unwrap();
        assert_eq!(tensor.to_f64(), [0.0; 21]);
    }
}
