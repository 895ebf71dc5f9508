//! A bf16 backend seen through host tensors in f32 or f64, so that tests written for one backend serve a device.
//!
//! Every float that goes in is rounded to bf16 and brought to the backend; what comes out is widened again. Put
//! around the oracle and the plain twin, it gives them the same inputs as the device has.

use pellucid::{
    Result,
    backend::{Activation, Backend, Draw, Drawn, Epilogue, Linear, LogProbs, LoraRows, Pages, Rope},
    tensor::{Dtype, Tensor},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Narrow<B> {
    pub(crate) inner: B,
    /// What activations come out as before they are widened: bf16, but f64 for the oracle.
    pub(crate) out: Dtype,
}

impl<B: Backend> Narrow<B> {
    /// An input.
    fn put(&self, tensor: &Tensor) -> Result<Tensor> {
        let narrow = match tensor.dtype() {
            Dtype::I32 => tensor.clone(),
            _ => tensor.converted(Dtype::BF16)?,
        };
        self.inner.upload(narrow)
    }

    fn put_all<const N: usize>(&self, tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
        let all: Vec<Tensor> = tensors.into_iter().map(|tensor| self.put(tensor)).collect::<Result<_>>()?;
        Ok(all.try_into().expect("as many as came in"))
    }

    /// An output's place, holding what it holds.
    fn place(&self, tensor: &Tensor) -> Result<Tensor> {
        self.inner.upload(tensor.converted(Dtype::BF16)?.converted(self.out)?)
    }

    fn back(&self, to: &mut Tensor, from: &Tensor) -> Result<()> {
        *to = self.inner.download(from)?.converted(to.dtype())?;
        Ok(())
    }

    /// Runs `op` with the parts of a linear.
    fn with_linear(&self, linear: &Linear<'_>, op: &mut dyn FnMut(&Linear<'_>) -> Result<()>) -> Result<()> {
        let weight = self.put(linear.weight)?;
        let bias = linear.bias.map(|bias| self.put(bias)).transpose()?;
        let pairs: Vec<[Tensor; 2]> =
            linear.lora.iter().map(|lora| self.put_all([lora.a, lora.b])).collect::<Result<_>>()?;
        let lora: Vec<LoraRows<'_>> = linear
            .lora
            .iter()
            .zip(&pairs)
            .map(|(lora, [a, b])| LoraRows { rows: lora.rows.clone(), a, b, scale: lora.scale })
            .collect();
        op(&Linear { weight: &weight, bias: bias.as_ref(), lora: &lora })
    }
}

impl<B: Backend> Backend for Narrow<B> {
    fn describe(&self) -> String {
        format!("{} through bf16", self.inner.describe())
    }

    fn activation(&self) -> Dtype {
        Dtype::F32
    }

    fn alloc(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        Tensor::zeros(dtype, shape)
    }

    fn upload(&self, host: Tensor) -> Result<Tensor> {
        Ok(host)
    }

    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn gather_rows(&self, out: &mut Tensor, table: &Tensor, rows: &Tensor) -> Result<()> {
        let mut to = self.place(out)?;
        let [table, rows] = self.put_all([table, rows])?;
        self.inner.gather_rows(&mut to, &table, &rows)?;
        self.back(out, &to)
    }

    fn scatter_rows(&self, out: &mut Tensor, source: &Tensor, rows: &Tensor) -> Result<()> {
        let mut to = self.place(out)?;
        let [source, rows] = self.put_all([source, rows])?;
        self.inner.scatter_rows(&mut to, &source, &rows)?;
        self.back(out, &to)
    }

    fn linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let mut to = self.place(out)?;
        let x = self.put(x)?;
        let gain = match epilogue {
            Epilogue::AddScaled(gain) => Some(self.put(gain)?),
            _ => None,
        };
        let epilogue = gain.as_ref().map_or(epilogue, Epilogue::AddScaled);
        self.with_linear(linear, &mut |linear| self.inner.linear(&mut to, &x, linear, epilogue))?;
        self.back(out, &to)
    }

    fn gated_linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        gate: &Linear<'_>,
        up: &Linear<'_>,
        activation: Activation,
    ) -> Result<()> {
        let mut to = self.place(out)?;
        let x = self.put(x)?;
        self.with_linear(gate, &mut |gate| {
            self.with_linear(up, &mut |up| self.inner.gated_linear(&mut to, &x, gate, up, activation))
        })?;
        self.back(out, &to)
    }

    fn rms_norm(&self, out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        let mut to = self.place(out)?;
        let [x, weight] = self.put_all([x, weight])?;
        self.inner.rms_norm(&mut to, &x, &weight, eps)?;
        self.back(out, &to)
    }

    fn layer_norm(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<()> {
        let mut to = self.place(out)?;
        let [x, weight, bias] = self.put_all([x, weight, bias])?;
        self.inner.layer_norm(&mut to, &x, &weight, &bias, eps)?;
        self.back(out, &to)
    }

    fn rope(&self, x: &mut Tensor, positions: &Tensor, rope: &Rope, inverse: bool) -> Result<()> {
        let mut to = self.place(x)?;
        let positions = self.put(positions)?;
        let rope = Rope {
            inv_freq: self.inner.upload(rope.inv_freq.clone())?,
            axis: self.inner.upload(rope.axis.clone())?,
        };
        self.inner.rope(&mut to, &positions, &rope, inverse)?;
        self.back(x, &to)
    }

    fn attention(
        &self,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        starts: &Tensor,
        causal: bool,
        scale: f32,
    ) -> Result<()> {
        let mut to = self.place(out)?;
        let [q, k, v, starts] = self.put_all([q, k, v, starts])?;
        let mut sums = lse.as_ref().map(|lse| self.inner.upload(Tensor::clone(lse))).transpose()?;
        self.inner.attention(&mut to, sums.as_mut(), &q, &k, &v, &starts, causal, scale)?;
        if let (Some(lse), Some(sums)) = (lse, sums) {
            self.back(lse, &sums)?;
        }
        self.back(out, &to)
    }

    fn kv_append(
        &self,
        k_pool: &mut Tensor,
        v_pool: &mut Tensor,
        k: &Tensor,
        v: &Tensor,
        slots: &Tensor,
    ) -> Result<()> {
        let (mut to_k, mut to_v) = (self.put(k_pool)?, self.put(v_pool)?);
        let [k, v, slots] = self.put_all([k, v, slots])?;
        self.inner.kv_append(&mut to_k, &mut to_v, &k, &v, &slots)?;
        self.back(k_pool, &to_k)?;
        self.back(v_pool, &to_v)
    }

    fn paged_attention(
        &self,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
        q: &Tensor,
        k_pool: &Tensor,
        v_pool: &Tensor,
        pages: &Pages<'_>,
        scale: f32,
    ) -> Result<()> {
        let mut to = self.place(out)?;
        let [q, k_pool, v_pool] = self.put_all([q, k_pool, v_pool])?;
        let [query_starts, lengths, tables] =
            self.put_all([pages.query_starts, pages.lengths, pages.tables])?;
        let pages = Pages { query_starts: &query_starts, lengths: &lengths, tables: &tables };
        let mut sums = lse.as_ref().map(|lse| self.inner.upload(Tensor::clone(lse))).transpose()?;
        self.inner.paged_attention(&mut to, sums.as_mut(), &q, &k_pool, &v_pool, &pages, scale)?;
        if let (Some(lse), Some(sums)) = (lse, sums) {
            self.back(lse, &sums)?;
        }
        self.back(out, &to)
    }

    fn logprobs(
        &self,
        out: &mut LogProbs,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()> {
        let [hidden, weight, targets] = self.put_all([hidden, weight, targets])?;
        let place = |tensor: &Tensor| self.inner.upload(tensor.clone());
        let mut to = LogProbs {
            logp: place(&out.logp)?,
            lse: place(&out.lse)?,
            entropy: place(&out.entropy)?,
            greedy: place(&out.greedy)?,
        };
        self.inner.logprobs(&mut to, &hidden, &weight, &targets, temperature)?;
        self.back(&mut out.logp, &to.logp)?;
        self.back(&mut out.lse, &to.lse)?;
        self.back(&mut out.entropy, &to.entropy)?;
        self.back(&mut out.greedy, &to.greedy)
    }

    fn sample(&self, out: &mut Drawn, hidden: &Tensor, weight: &Tensor, draws: &[Draw<'_>]) -> Result<()> {
        let [hidden, weight] = self.put_all([hidden, weight])?;
        let place = |tensor: &Tensor| self.inner.upload(tensor.clone());
        let mut to = Drawn { token: place(&out.token)?, logp: place(&out.logp)? };
        self.inner.sample(&mut to, &hidden, &weight, draws)?;
        self.back(&mut out.token, &to.token)?;
        self.back(&mut out.logp, &to.logp)
    }
}
