//! A bf16 backend seen through host tensors in f32 or f64, so that tests written for one backend serve a device.
//!
//! Every float that goes in is rounded to bf16 and brought to the backend; what comes out is widened again. Put
//! around the oracle and the plain twin, it gives them the same inputs as the device has.

use pellucid::{
    Result,
    backend::{
        Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, Draw, Drawn, Epilogue, Groups,
        Linear, LinearGrads, LogProbs, LoraGrads, LoraRows, Pages, Rope, Segments,
    },
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

    /// A tensor in the statistic dtype, which is not rounded.
    fn statistic_of(&self, tensor: &Tensor) -> Result<Tensor> {
        self.inner.upload(tensor.clone())
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
        segments: &Segments<'_>,
        causal: bool,
        scale: f32,
    ) -> Result<()> {
        let mut to = self.place(out)?;
        let [q, k, v, starts] = self.put_all([q, k, v, segments.starts])?;
        let parents = segments.parents.map(|parents| self.put(parents)).transpose()?;
        let segments = Segments { starts: &starts, parents: parents.as_ref() };
        let mut sums = lse.as_ref().map(|lse| self.inner.upload(Tensor::clone(lse))).transpose()?;
        self.inner.attention(&mut to, sums.as_mut(), &q, &k, &v, &segments, causal, scale)?;
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
        let groups = pages.groups.map(|groups| self.put_all([groups.starts, groups.shared])).transpose()?;
        let groups = groups.as_ref().map(|[starts, shared]| Groups { starts, shared });
        let pages = Pages { query_starts: &query_starts, lengths: &lengths, tables: &tables, groups };
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
        let entropy = out.entropy.as_ref().map(place).transpose()?;
        let mut to = Drawn { token: place(&out.token)?, logp: place(&out.logp)?, entropy };
        self.inner.sample(&mut to, &hidden, &weight, draws)?;
        self.back(&mut out.token, &to.token)?;
        if let (Some(out), Some(entropy)) = (&mut out.entropy, &to.entropy) {
            self.back(out, entropy)?;
        }
        self.back(&mut out.logp, &to.logp)
    }

    fn zero(&self, out: &mut Tensor) -> Result<()> {
        let mut to = self.statistic_of(out)?;
        self.inner.zero(&mut to)?;
        self.back(out, &to)
    }

    fn gather_rows_backward(&self, dtable: &mut Tensor, dout: &Tensor, rows: &Tensor) -> Result<()> {
        let mut to = self.statistic_of(dtable)?;
        let [dout, rows] = self.put_all([dout, rows])?;
        self.inner.gather_rows_backward(&mut to, &dout, &rows)?;
        self.back(dtable, &to)
    }

    fn linear_backward(
        &self,
        dx: Option<&mut Tensor>,
        add: bool,
        grads: LinearGrads<'_>,
        dy: &Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
    ) -> Result<()> {
        let [dy, x] = self.put_all([dy, x])?;
        let mut to_dx = dx.as_ref().map(|dx| self.place(dx)).transpose()?;
        let place = |tensor: &Option<&mut Tensor>| {
            tensor.as_ref().map(|tensor| self.statistic_of(tensor)).transpose()
        };
        let (mut weight, mut bias) = (place(&grads.weight)?, place(&grads.bias)?);
        let pair = |pair: &LoraGrads<'_>| Ok([self.statistic_of(pair.a)?, self.statistic_of(pair.b)?]);
        let mut pairs: Vec<[Tensor; 2]> = grads.lora.iter().map(pair).collect::<Result<_>>()?;
        self.with_linear(linear, &mut |linear| {
            let lora = pairs.iter_mut().map(|[a, b]| LoraGrads { a, b }).collect();
            let grads = LinearGrads { weight: weight.as_mut(), bias: bias.as_mut(), lora };
            self.inner.linear_backward(to_dx.as_mut(), add, grads, &dy, &x, linear)
        })?;
        for (to, from) in [(dx, to_dx), (grads.weight, weight), (grads.bias, bias)] {
            if let (Some(to), Some(from)) = (to, from) {
                self.back(to, &from)?;
            }
        }
        for (to, [a, b]) in grads.lora.into_iter().zip(&pairs) {
            self.back(to.a, a)?;
            self.back(to.b, b)?;
        }
        Ok(())
    }

    fn gated_backward(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dout: &mut Tensor,
        activation: Activation,
    ) -> Result<()> {
        let (mut to_gate, mut to_up, mut to_out) = (self.place(gate)?, self.place(up)?, self.place(dout)?);
        self.inner.gated_backward(&mut to_gate, &mut to_up, &mut to_out, activation)?;
        self.back(gate, &to_gate)?;
        self.back(up, &to_up)?;
        self.back(dout, &to_out)
    }

    fn activate_backward(&self, x: &mut Tensor, dout: &Tensor, activation: Activation) -> Result<()> {
        let (mut to, dout) = (self.place(x)?, self.put(dout)?);
        self.inner.activate_backward(&mut to, &dout, activation)?;
        self.back(x, &to)
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Tensor,
        add: bool,
        dweight: Option<&mut Tensor>,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<()> {
        let mut to = self.place(dx)?;
        let mut sums = dweight.as_ref().map(|dweight| self.statistic_of(dweight)).transpose()?;
        let [dy, x, weight] = self.put_all([dy, x, weight])?;
        self.inner.rms_norm_backward(&mut to, add, sums.as_mut(), &dy, &x, &weight, eps)?;
        if let (Some(dweight), Some(sums)) = (dweight, sums) {
            self.back(dweight, &sums)?;
        }
        self.back(dx, &to)
    }

    fn attention_backward(
        &self,
        grads: &mut AttentionGrads,
        dout: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments<'_>,
        causal: bool,
        scale: f32,
    ) -> Result<()> {
        let mut to = AttentionGrads {
            dq: self.place(&grads.dq)?,
            dk: self.place(&grads.dk)?,
            dv: self.place(&grads.dv)?,
        };
        let [dout, out, q, k, v, starts] = self.put_all([dout, out, q, k, v, segments.starts])?;
        let parents = segments.parents.map(|parents| self.put(parents)).transpose()?;
        let segments = Segments { starts: &starts, parents: parents.as_ref() };
        let lse = self.statistic_of(lse)?;
        self.inner.attention_backward(&mut to, &dout, &out, &lse, &q, &k, &v, &segments, causal, scale)?;
        self.back(&mut grads.dq, &to.dq)?;
        self.back(&mut grads.dk, &to.dk)?;
        self.back(&mut grads.dv, &to.dv)
    }

    fn logprobs_backward(
        &self,
        dhidden: &mut Tensor,
        dweight: Option<&mut Tensor>,
        dlogp: &Tensor,
        lse: &Tensor,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()> {
        let mut to = self.place(dhidden)?;
        let mut sums = dweight.as_ref().map(|dweight| self.statistic_of(dweight)).transpose()?;
        let [hidden, weight, targets] = self.put_all([hidden, weight, targets])?;
        let (dlogp, lse) = (self.statistic_of(dlogp)?, self.statistic_of(lse)?);
        let inner = &self.inner;
        inner.logprobs_backward(
            &mut to,
            sums.as_mut(),
            &dlogp,
            &lse,
            &hidden,
            &weight,
            &targets,
            temperature,
        )?;
        if let (Some(dweight), Some(sums)) = (dweight, sums) {
            self.back(dweight, &sums)?;
        }
        self.back(dhidden, &to)
    }

    fn sq_norm(&self, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()> {
        let mut to = self.statistic_of(out)?;
        let tensors: Vec<Tensor> =
            tensors.iter().map(|tensor| self.statistic_of(tensor)).collect::<Result<_>>()?;
        self.inner.sq_norm(&mut to, &tensors.iter().collect::<Vec<_>>())?;
        self.back(out, &to)
    }

    fn adamw(&self, parameters: &mut [AdamwParameter<'_>], settings: &AdamwSettings) -> Result<()> {
        for parameter in parameters {
            let place = |tensor: &Tensor| self.statistic_of(tensor);
            let (mut master, mut first) = (place(parameter.master)?, place(parameter.first)?);
            let (mut second, gradient) = (place(parameter.second)?, place(parameter.gradient)?);
            let mut weight = parameter.weight.as_ref().map(|weight| self.place(weight)).transpose()?;
            let inner = AdamwParameter {
                master: &mut master,
                first: &mut first,
                second: &mut second,
                gradient: &gradient,
                weight: weight.as_mut(),
                decay: parameter.decay,
            };
            self.inner.adamw(&mut [inner], settings)?;
            self.back(parameter.master, &master)?;
            self.back(parameter.first, &first)?;
            self.back(parameter.second, &second)?;
            if let (Some(to), Some(from)) = (parameter.weight.as_deref_mut(), weight) {
                self.back(to, &from)?;
            }
        }
        Ok(())
    }
}
