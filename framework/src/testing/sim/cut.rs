//! What is left of a drawn case while it is made shorter.
//!
//! Steps, faults and kinds of bad weather are left out, and everything that is left stays as it was drawn, at its moment: so
//! what is tried next differs from what failed in one thing only. (Trees of values that shrink element by element would move
//! everything behind what they take away.)

use super::Weather;

/// What is kept of a drawn case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) steps: Vec<usize>,
    pub(super) faults: Vec<usize>,
    /// One bit for each kind of bad weather that is kept.
    weather: u8,
}

/// All four kinds of bad weather.
const FULL: u8 = 0b1111;

impl Cut {
    pub(super) fn whole(steps: usize, faults: usize) -> Self {
        Self { steps: (0..steps).collect(), faults: (0..faults).collect(), weather: FULL }
    }

    pub(super) fn weather(&self, drawn: Weather) -> Weather {
        let kept = |bit: u8, value: u16| if self.weather & bit == 0 { 0 } else { value };
        Weather {
            lose: kept(1, drawn.lose),
            repeat: kept(2, drawn.repeat),
            delay: kept(4, drawn.delay),
            disk: kept(8, drawn.disk),
        }
    }

    /// Shorter cases, the shortest first.
    pub(super) fn shorter(&self) -> Vec<Self> {
        let mut shorter = Vec::new();
        shorter.extend(without(&self.faults).into_iter().map(|faults| Self { faults, ..self.clone() }));
        shorter.extend(without(&self.steps).into_iter().map(|steps| Self { steps, ..self.clone() }));
        let bits = [FULL, 1, 2, 4, 8].into_iter().filter(|bit| self.weather & bit != 0);
        shorter.extend(bits.map(|bit| Self { weather: self.weather & !bit, ..self.clone() }));
        shorter
    }
}

/// The list without one of its halves, its quarters … its single elements.
fn without(kept: &[usize]) -> Vec<Vec<usize>> {
    let mut lists = Vec::new();
    let mut size = kept.len();
    while size > 0 {
        for (at, _) in kept.iter().enumerate().step_by(size) {
            let (before, rest) = kept.split_at(at);
            lists.push(before.iter().chain(rest.iter().skip(size)).copied().collect());
        }
        size /= 2;
    }
    lists
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |kept: &[usize]| kept.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
        write!(f, "{}-{}-{}", list(&self.steps), list(&self.faults), self.weather)
    }
}

impl std::str::FromStr for Cut {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let list = |part: Option<&str>| -> Result<Vec<usize>, Self::Err> {
            part.unwrap_or_default().split('.').filter(|number| !number.is_empty()).map(str::parse).collect()
        };
        Ok(Self {
            steps: list(parts.next())?,
            faults: list(parts.next())?,
            weather: parts.next().unwrap_or_default().parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_read_as_it_is_written() {
        for cut in [Cut::whole(3, 2), Cut::whole(0, 0)].into_iter().flat_map(|cut| cut.shorter()) {
            assert_eq!(cut.to_string().parse(), Ok(cut));
        }
    }

    #[test]
    fn every_single_thing_can_be_left_out() {
        let shorter = Cut::whole(3, 2).shorter();
        for step in 0..3 {
            assert!(shorter.iter().any(|cut| cut.steps.len() == 2 && !cut.steps.contains(&step)));
        }
        assert!(Cut { steps: Vec::new(), faults: Vec::new(), weather: 0 }.shorter().is_empty());
    }
}
