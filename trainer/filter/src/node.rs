//! A checked expression.
//!
//! Comes in and goes out: plain values. Fields and variables are numbers, so that nothing is looked up by name for a sample.

use regex::Regex;

/// A part of an expression.
#[derive(Debug)]
pub(crate) enum Node {
    /// A value that is written in the expression.
    Literal(Literal),
    /// The field of the sidecar with this number.
    Field(usize),
    /// Whether that field is there.
    HasField(usize),
    /// The variable of a walk over a list: 0 for what is collected, 1 for the item.
    Local(usize),
    /// A field of an object.
    Select(Box<Node>, String),
    /// Whether an object has a field.
    Has(Box<Node>, String),
    /// An item of a list or a field of an object.
    Index(Box<Node>, Box<Node>),
    /// `!`
    Not(Box<Node>),
    /// True, unless the value is false: what stops a walk.
    NotFalse(Box<Node>),
    /// `-`
    Negate(Box<Node>),
    /// `&&`
    And(Box<Node>, Box<Node>),
    /// `||`
    Or(Box<Node>, Box<Node>),
    /// `?:`
    Choice(Box<[Node; 3]>),
    /// `==`, or `!=` when false.
    Equal(bool, Box<Node>, Box<Node>),
    /// An order.
    Compare(Comparison, Box<Node>, Box<Node>),
    /// A calculation.
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    /// `in`
    In(Box<Node>, Box<Node>),
    /// A list that is written in the expression.
    List(Vec<Node>),
    /// A function of one value.
    Of(Function, Box<Node>),
    /// A function of two texts.
    OfTexts(TextFunction, Box<Node>, Box<Node>),
    /// Whether a text has a part that fits.
    Matches(Box<Node>, Regex),
    /// A walk over a list.
    Walk(Box<Walk>),
}

/// A walk over a list that is written in the expression.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) items: Vec<Node>,
    pub(crate) begin: Literal,
    pub(crate) goes_on: Node,
    pub(crate) step: Node,
    pub(crate) result: Node,
}

/// A value that is written in the expression.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
}

/// Which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Which calculation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Size,
    LowerAscii,
    Int,
    Double,
    String,
}

/// A function of two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextFunction {
    Contains,
    StartsWith,
    EndsWith,
}
