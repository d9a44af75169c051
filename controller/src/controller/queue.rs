//! The queue of pods: each has its turn when it's due, a few at a time and none twice at a time. What is done in a turn is handed
//! in. When something is due, and that it's due once however often it was asked for, is kube's scheduler's to know.

use std::collections::HashSet;
use std::pin::pin;

use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::future::Either;
use futures::stream::{FuturesUnordered, select};
use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use tokio::time::Instant;

use super::pods::PodKey;
use super::reconcile::Again;

/// Pods that are looked after at a time.
const CONCURRENCY: usize = 4;

/// Gives those their turn that are asked for, for ever. `on_request` is told of each that is to have one, and from when on.
pub async fn serve<Turn: Future<Output = Again>>(
    asked: UnboundedReceiver<PodKey>,
    on_request: impl Fn(&PodKey, Instant),
    turn: impl Fn(PodKey) -> Turn,
) {
    let (later, put_off) = mpsc::unbounded();
    let now = asked.map(|pod| ScheduleRequest { message: pod, run_at: Instant::now() });
    let requests = select(now, put_off).inspect(|request| on_request(&request.message, request.run_at));
    let mut queue = pin!(scheduler(requests));
    let mut underway = FuturesUnordered::new();
    let mut busy = HashSet::new();
    loop {
        let mut due = if busy.len() < CONCURRENCY {
            Either::Left(queue.as_mut().hold_unless(|pod| !busy.contains(pod)))
        } else {
            // It takes in what is asked for, and gives out nothing.
            Either::Right(queue.as_mut().hold())
        };
        tokio::select! {
            Some(pod) = due.next() => {
                busy.insert(pod.clone());
                underway.push(turn(pod.clone()).map(|again| (pod, again)));
            }
            Some((pod, again)) = underway.next() => {
                busy.remove(&pod);
                if let Some(wait) = again {
                    // It cannot fail: the receiver is ours.
                    let _ = later.unbounded_send(ScheduleRequest { message: pod, run_at: Instant::now() + wait });
                }
            }
            // It does not come to this: those that are put off come from here.
            else => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    /// Turns as they begin and end: the second, and the pod with a `+` or a `-`.
    async fn turns(asked: &[(u32, &str)], again: impl Fn(&str) -> Again, until: u32) -> Vec<String> {
        let (start, told) = (Instant::now(), RefCell::new(Vec::new()));
        let tell = |what: &str, pod: &PodKey| {
            told.borrow_mut().push(format!("{} {}{what}", start.elapsed().as_secs(), pod.name()));
        };
        let (ask, asked_for) = mpsc::unbounded();
        let asking = async {
            for (second, pod) in asked {
                tokio::time::sleep_until(start + *second * SECOND).await;
                ask.unbounded_send(PodKey::new("shop", pod)).unwrap();
            }
            std::future::pending::<()>().await;
        };
        let turn = async |pod: PodKey| {
            tell("+", &pod);
            tokio::time::sleep(10 * SECOND).await;
            tell("-", &pod);
            again(pod.name())
        };
        let serving = serve(asked_for, |_, _| {}, turn);
        let both = async { tokio::join!(serving, asking) };
        tokio::time::timeout(until * SECOND, both).await.unwrap_err();
        told.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_asked_for_in_its_turn_has_one_more_and_not_two() {
        let asked = [(0, "web"), (1, "web"), (2, "web"), (3, "other")];
        let turns = turns(&asked, |_| None, 60).await;
        assert_eq!(turns, ["0 web+", "3 other+", "10 web-", "10 web+", "13 other-", "20 web-"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_pods_have_their_turns_at_a_time_and_the_others_wait() {
        let asked: Vec<_> = ["a", "b", "c", "d", "e", "e"].map(|pod| (0, pod)).into();
        let turns = turns(&asked, |_| None, 60).await;
        let begun: Vec<_> = turns.iter().filter(|turn| turn.ends_with('+')).collect();
        assert_eq!(begun.len(), 5, "{turns:?}");
        assert!(begun[..4].iter().all(|turn| turn.starts_with("0 ")), "{turns:?}");
        assert!(begun[4].starts_with("10 "), "{turns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_put_off_has_its_turn_when_the_wait_is_over_or_when_it_is_asked_for_before() {
        let again = |pod: &str| (pod == "web").then_some(30 * SECOND);
        let turns = turns(&[(0, "web"), (20, "web")], again, 75).await;
        assert_eq!(turns, ["0 web+", "10 web-", "20 web+", "30 web-", "60 web+", "70 web-"]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_wish_is_told_of_with_its_moment() {
        let (start, told) = (Instant::now(), RefCell::new(Vec::new()));
        let (ask, asked) = mpsc::unbounded();
        for pod in ["web", "web"] {
            ask.unbounded_send(PodKey::new("shop", pod)).unwrap();
        }
        let on_request = |pod: &PodKey, due: Instant| told.borrow_mut().push((pod.to_string(), due - start));
        let serving = serve(asked, on_request, async |_| Some(30 * SECOND));
        tokio::time::timeout(10 * SECOND, serving).await.unwrap_err();
        let web = |wait| ("shop/web".to_owned(), wait);
        assert_eq!(told.into_inner(), [web(Duration::ZERO), web(Duration::ZERO), web(30 * SECOND)]);
    }
}
