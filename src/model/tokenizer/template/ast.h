// SPDX-License-Identifier: Apache-2.0
// The tree of a template. Made by the parser, walked by the interpreter.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/tokenizer/template/value.h"

namespace quadrille::tokenizer::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Argument {
  std::string keyword;  // "" for a positional one
  ExpressionPtr value;
};

struct Expression {
  enum class Kind {
    kConstant,
    kName,
    kList,
    kTuple,
    kDict,    // children: key, value, key, value ...
    kUnary,   // name: "not", "-", "+"
    kBinary,  // name: the operator
    kAnd,
    kOr,
    kCompare,      // children[0] operators[0] children[1] operators[1] ...
    kConditional,  // children: value, condition, otherwise (may be null)
    kAttribute,    // children[0].name
    kIndex,        // children[0][children[1]]
    kSlice,        // children[0][children[1]:children[2]:children[3]], each of the three may be null
    kCall,         // children[0](arguments)
    kFilter,       // children[0] | name(arguments); children[0] is null in a filter block
    kTest,         // children[0] is name(arguments)
  };
  Kind kind = Kind::kConstant;
  int line = 0;
  int depth = 1;  // of the tree below, bounded by the parser
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> children;
  std::vector<std::string> operators;
  std::vector<Argument> arguments;
};

// The left side of a set or for.
struct Target {
  enum class Kind { kName, kAttribute, kTuple };
  Kind kind = Kind::kName;
  std::string name;
  std::string attribute;
  std::vector<Target> parts;
};

struct Parameter {
  std::string name;
  ExpressionPtr otherwise;  // null: none
};

struct Statement;
using Body = std::vector<Statement>;

struct Branch {
  ExpressionPtr condition;  // null: else
  Body body;
};

struct Statement {
  enum class Kind {
    kText,
    kOutput,    // expression
    kIf,        // branches
    kFor,       // target in expression if condition: branches[0]; branches[1] when nothing was there
    kSet,       // target = expression
    kSetBlock,  // target = body through the filter `expression` (may be null)
    kMacro,     // name(parameters): body
    kCall,      // expression called with a caller(parameters): body
    kFilter,    // body through the filter `expression`
    kWith,      // targets = values: body
    kBlock,     // body as it is
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;  // or the name of a macro
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<Branch> branches;
  std::vector<Target> targets;
  std::vector<ExpressionPtr> values;
  std::vector<Parameter> parameters;
  Body body;
};

struct Program {
  std::string where;
  Body body;
};

}  // namespace quadrille::tokenizer::jinja
